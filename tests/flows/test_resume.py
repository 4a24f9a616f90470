"""A run that was interrupted goes on as the same run, to the same end."""

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.entities import Run as MlflowRun

from src import promote
from src.experiment.report_run import config_hash
from src.experiment.resume import _same_training
from src.train import main
from src.training.optim import resolve_defaults
from src.training.recorder import TIMING_METRICS
from src.utils.config import Config
from tests.conftest import Run
from tests.flows.processes import STORES, TINY, client_of, only_run, start, wait_for_epoch
from tests.images import write_npz

pytestmark = pytest.mark.slow

MANY = ["--set", "training.epochs=6", "--set", "training.checkpoint_every_minutes=1e-9"]
PARTS = [*TINY, *MANY]


def points(run: MlflowRun, store: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every value of every metric of the run that does not measure the machine."""
    client = client_of(folder, store)
    names = [
        name for name in run.data.metrics if not name.startswith("system/") and name not in TIMING_METRICS
    ]
    return {
        name: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, name))
        for name in names
    }


def weights(folder: Path, file: str) -> dict[str, torch.Tensor]:
    (path,) = folder.glob(f"outputs/*/checkpoints/{file}")
    found: dict[str, torch.Tensor] = torch.load(path)["model_state_dict"]
    return found


def assert_same(one: Path, two: Path, store: str = "", other_store: str | None = None) -> None:
    """Both folders hold the same training: weights, table of epochs, metrics, predictions."""
    for file in ("latest.pth", "best_model.pth"):
        first, second = weights(one, file), weights(two, file)
        assert all(torch.equal(first[key], second[key]) for key in first), file
    for pattern in ("outputs/logs/*/training_history.csv", "outputs/*/predictions/*.csv"):
        tables = [[path.read_bytes() for path in sorted(folder.glob(pattern))] for folder in (one, two)]
        assert len(tables[0]) > 0
        assert tables[0] == tables[1]
    other_store = store if other_store is None else other_store
    first_run, second_run = only_run(one, store), only_run(two, other_store)
    assert first_run.info.status == second_run.info.status == "FINISHED"
    assert points(second_run, other_store, two) == points(first_run, store, one)
    assert "error" not in second_run.data.tags
    assert second_run.outputs is not None
    assert len(second_run.outputs.model_outputs) == 1
    assert not list(two.rglob(".tmp-*"))


def interrupt(folder: Path, number: signal.Signals, **env: Any) -> None:
    process = start(folder, "-m", "src.train", *PARTS, **env)
    wait_for_epoch(folder, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0


@pytest.mark.parametrize(
    ("number", "status", "store"),
    [
        pytest.param(signal.SIGKILL, "RUNNING", "file", marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGTERM, "KILLED", "file", marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupted_run_ends_like_one_that_was_not(
    number: signal.Signals, status: str, store: str, folder: Path, npz: Path, run_python: Run
) -> None:
    env: dict[str, Any] = {"MLFLOW_TRACKING_URI": STORES[store]} if STORES[store] else {}
    interrupt(folder, number, **env)
    run = only_run(folder, STORES[store])
    assert run.info.status == status
    again = run_python("-m", "src.train", "--resume", run.info.run_id, **env)
    assert again.returncode == 0, again.stderr
    whole = folder / "whole"
    whole.mkdir()
    shutil.copy(npz, whole / npz.name)
    process = start(whole, "-m", "src.train", *PARTS, **env)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    moved = folder.parent / f"{folder.name}-whole"
    whole.rename(moved)  # so that a search in one folder does not find the other
    assert_same(moved, folder, STORES[store])


def train(*options: str) -> int:
    return main([*TINY, "--set", "training.epochs=2", *options])


@pytest.fixture
def finished(folder: Path, npz: Path, sqlite: Path) -> str:
    assert npz.exists()
    assert sqlite.exists()
    assert train() == 0
    return str(only_run(folder).info.run_id)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the run is finished; raise training.epochs"),
        (["--set", "training.batch_size=4"], "training.batch_size (was 8, now 4)"),
        (["--model", "resnet18", "--epochs", "9"], "model.name (was shufflenet_v2_x0_5, now resnet18)"),
        (["--epochs", "1"], "training.epochs was 2 and may only be raised"),
        (["--data", "other.npz", "--epochs", "9"], "the data has changed since"),
        (["--set", "experiment.output_dir=elsewhere"], "elsewhere/logs/"),
    ],
)
def test_another_training_is_refused(
    finished: str, folder: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], message: str
) -> None:
    write_npz(folder / "other.npz", train=40)
    assert main(["--resume", finished, *options]) == 2
    assert message in capsys.readouterr().err
    assert only_run(folder).info.status == "FINISHED"


def test_more_epochs_go_on_and_a_better_model_is_a_new_one(finished: str, folder: Path) -> None:
    before = only_run(folder)
    assert promoted() == (1, models(before)[0])
    for epochs in range(4, 40, 4):
        assert main(["--resume", finished, "--epochs", str(epochs)]) == 0
        run = only_run(folder)
        assert run.info.status == "FINISHED"
        if run.data.metrics["best_val_auc"] > before.data.metrics["best_val_auc"]:
            assert models(run)[:-1] == models(before)
            assert promoted() == (2, models(run)[-1])
            return
        # No better: the same model, which is not logged again.
        assert models(run) == models(before)
    pytest.fail("more epochs made no better model")


def models(run: MlflowRun) -> list[str]:
    """Ids of the run's logged models, by their epoch."""
    assert run.outputs is not None
    return [output.model_id for output in sorted(run.outputs.model_outputs, key=lambda output: output.step)]


def promoted() -> tuple[int, str]:
    """Promotes; the champion's version, and the id of its logged model."""
    assert promote.main([]) == 0
    client = mlflow.MlflowClient()
    (registered,) = client.search_registered_models()
    version = client.get_model_version_by_alias(registered.name, "champion")
    assert version.source is not None
    return int(version.version), version.source.removeprefix("models:/")


@pytest.mark.usefixtures("npz", "sqlite")
def test_auto_takes_the_one_that_fits_or_starts_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--resume", "auto") == 0
    assert "no matching unfinished run; starting a new one" in capsys.readouterr().out
    run_id = only_run(folder).info.run_id
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.set_terminated(run_id, "KILLED")  # as if it had been stopped after its last checkpoint
    assert train("--resume", "auto") == 0
    assert f"resuming {run_id}" in capsys.readouterr().out
    assert only_run(folder).info.status == "FINISHED"
    assert train() == 0
    for run in client.search_runs(["0"]):
        client.set_terminated(run.info.run_id, "FAILED")
    assert train("--resume", "auto") == 2
    assert "2 unfinished runs match" in capsys.readouterr().err


@pytest.mark.usefixtures("npz", "sqlite")
def test_a_run_that_is_trained_right_now_is_refused(folder: Path, run_python: Run) -> None:
    process = start(folder, "-m", "src.train", *TINY, "--set", "training.epochs=5000")
    try:
        wait_for_epoch(folder, process)
        done = run_python("-m", "src.train", "--resume", only_run(folder).info.run_id)
        assert done.returncode == 2
        assert "another process is training this run" in done.stderr
        assert only_run(folder).info.status == "RUNNING"
    finally:
        process.kill()
        process.communicate()


def test_an_id_that_is_none(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", finished[:-1] + "x"]) == 2
    assert "run not found in" in capsys.readouterr().err


def test_where_images_lie_and_how_steps_are_launched_may_change() -> None:
    """After a training has run out of memory, say; neither changes a result."""
    changes = {"data.device_cache": False, "training.compile": False}  # as YAML reads a bare off
    stored = resolve_defaults(Config())
    resumed = _same_training(stored, changes, "r")
    assert (resumed.data.device_cache, resumed.training.compile) == ("off", "off")
    assert config_hash(resumed) == config_hash(stored)
    assert resumed.to_yaml() != stored.to_yaml()
