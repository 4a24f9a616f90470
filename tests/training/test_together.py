"""One training in several processes gives what one process gives, and goes on exactly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import clean_environment
from tests.images import write_npz

pytestmark = pytest.mark.slow

BASE = {
    "data.root_dir": "small.npz",
    "model.weights": "none",
    "training.device": "cpu",
    "training.precision": "float32",
    "training.epochs": 2,
    "training.batch_size": 8,
    # Training magnifies what float32 rounds, from step to step and the more the larger the rate.
    "training.optimizer": "sgd",
    "training.learning_rate": 1e-4,
}
# Models without batch norm: with it, each process has its own statistics, but for SyncBatchNorm on GPUs.
EQUAL: dict[str, dict[str, Any]] = {
    "plain": {"model.name": "squeezenet1_1", "data.image_size": 32, "training.learning_rate": 1e-3},
    "fewer images to validate on": {
        "model.name": "squeezenet1_1",
        "data.image_size": 32,
        "data.root_dir": "few.npz",
    },
    "everything": {
        "model.name": "squeezenet1_1",
        "data.image_size": 32,
        "training.batch_size": 4,
        "training.gradient_accumulation_steps": 3,
        "training.class_weights": "balanced",
        "training.mixup_alpha": 0.4,
        "training.ema_decay": 0.5,
        "training.clip_grad_norm": 1.0,
        "training.freeze_backbone_epochs": 1,
        "training.warmup_epochs": 0,
    },
}
TOLERANCE = 1e-4
"""Of losses and AUC."""

EXACT: dict[str, dict[str, Any]] = {
    "batch norm": {"training.learning_rate": 0.05},
    "frozen first": {"training.learning_rate": 0.05, "training.freeze_backbone_epochs": 1},
    "all else": {"training.optimizer": "adamw", "training.ema_decay": 0.9, "training.mixup_alpha": 0.2},
}
EPOCHS = ["epoch 0", "epoch 1", "epoch 1"]
"""In which each was interrupted."""


def run(folder: Path, count: int, tasks: dict[str, dict[str, Any]], *, resume: bool) -> list[dict[str, Any]]:
    """What each of ``count`` processes has found."""
    # 35 images in batches of 8: the last has 3, so that the fourth of four processes has none of it.
    write_npz(folder / "small.npz", train=35, val=19, test=0)
    write_npz(folder / "few.npz", train=35, val=3, test=0)
    return launch(folder, count, {name: BASE | changes for name, changes in tasks.items()}, resume=resume)


def launch(
    folder: Path, count: int, tasks: dict[str, dict[str, Any]], *flags: str, resume: bool
) -> list[dict[str, Any]]:
    """Trains by all settings in ``count`` processes."""
    task = {name: {"settings": settings, "resume": resume} for name, settings in tasks.items()}
    (folder / "tasks.json").write_text(json.dumps(task))
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [sys.executable, *starter, "-m", "tests.training.distributed_worker", "tasks.json", *flags],
        cwd=folder,
        env=clean_environment(folder / "torch"),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"found_{count}_{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("alone"), 1, EQUAL, resume=False)[0]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_as_many_processes_as_you_like_give_the_same(folder: Path, alone: dict[str, Any], count: int) -> None:
    found = run(folder, count, EQUAL, resume=False)
    assert all(other == found[0] for other in found[1:])  # to the last bit
    for name in EQUAL:
        rows, wanted = (source[name]["whole"]["history"] for source in (found[0], alone))
        for row, want in zip(rows, wanted, strict=True):
            for metric in ("train_loss", "val_loss", "val_auc"):
                assert row[metric] == pytest.approx(want[metric], abs=TOLERANCE), (name, metric)


def test_an_interrupted_training_goes_on_to_the_same_bits(folder: Path) -> None:
    """With three processes the order in which gradients are added matters."""
    tasks = {
        name: {"model.name": "resnet18", "training.checkpoint_every_minutes": 1e-9, **changes}
        for name, changes in EXACT.items()
    }
    for found in run(folder, 3, tasks, resume=True):
        for name in EXACT:
            assert [place.partition(",")[0] for place, _ in found[name]["resumed"]] == EPOCHS
            for place, summary in found[name]["resumed"]:
                assert summary == found[name]["whole"], (name, place)
