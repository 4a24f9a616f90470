"""Files that would execute something, or exhaust the machine, if they were opened as they ask to be.

Pickled weights and models, objects in an npz and an image bomb are met in `tests.models.test_weights`,
`tests.promotion.test_promote` and `tests.flows.test_bad_input`.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from src import promote
from src.train import main
from src.training.checkpoint import CheckpointStore
from tests.flows.processes import TINY, only_run

pytestmark = pytest.mark.slow

MARKER = Path("exploded")


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(MARKER.resolve()),)


def as_checkpoint(path: Path) -> None:
    path.unlink(missing_ok=True)  # whose bytes other names may share
    torch.save({"model_state_dict": Bomb()}, path)


def as_plain_pickle(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(pickle.dumps({"model_state_dict": Bomb()}))


@pytest.fixture
def stopped(
    folder: Path, npz: Path, sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, CheckpointStore]:
    """A run that could go on, and its checkpoints."""
    assert npz.exists()
    assert sqlite.exists()
    assert main([*TINY, "--epochs", "2"]) == 0
    run = only_run(folder)
    mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").set_terminated(run.info.run_id, "KILLED")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    store = CheckpointStore(next(folder.glob("outputs/*/checkpoints")))
    os.link(store.best, store.previous)  # a run that was stopped has the one before: here epoch 1, the best
    return run.info.run_id, store


@pytest.mark.parametrize("write", [as_checkpoint, as_plain_pickle])
def test_a_bomb_instead_of_a_checkpoint(
    stopped: tuple[str, CheckpointStore], write: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, store = stopped
    assert store.previous.exists()
    write(store.latest)
    write(store.best)
    capsys.readouterr()
    # What was there before is whole, and goes on.
    assert main(["--resume", run_id]) == 0
    errors = capsys.readouterr().err
    assert "latest.pth: not a checkpoint that can be opened: " in errors
    assert "continuing from latest.prev.pth" in errors
    write(store.latest)
    write(store.previous)
    assert main(["--resume", run_id, "--epochs", "3"]) != 0
    errors = capsys.readouterr().err
    assert "latest.prev.pth: not a checkpoint that can be opened" in errors
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert not MARKER.exists()


OBJECT = f"training:\n  epochs: !!python/object/apply:os.mkdir ['{MARKER}']\n"


def test_an_object_in_a_config(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(OBJECT)
    assert main(["--data", str(npz), "--config", "my.yaml"]) == 2
    assert "my.yaml: only plain YAML values are read" in capsys.readouterr().err
    assert main(["--data", str(npz), "--set", f"training.epochs=!!python/object/apply:os.mkdir ['{MARKER}']"])
    assert "only plain YAML values are read" in capsys.readouterr().err
    assert not MARKER.exists()


def test_an_object_in_a_record(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert npz.exists()
    assert main([*TINY, "--promote"]) == 0
    (record,) = Path("config/best_hparams").glob("*.yaml")
    record.write_text(OBJECT)
    capsys.readouterr()
    assert promote.main(["--force"]) == 1
    assert promote.main(["--check"]) == 1
    shown = capsys.readouterr()
    assert "only plain YAML values are read" in shown.out + shown.err
    assert "Traceback" not in shown.err
    assert record.read_text() == OBJECT
    assert not MARKER.exists()


def npz_bomb(path: Path) -> None:
    """A few bytes that say to be an array of a million million."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1_000_000, 1_000, 1_000)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train_images", "train_labels", "val_images", "val_labels"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(1000))


def test_an_npz_bomb(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz_bomb(folder / "bomb.npz")
    assert main(["--data", "bomb.npz"]) == 2
    errors = capsys.readouterr().err
    assert "bomb.npz" in errors
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
