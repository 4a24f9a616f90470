"""What only a GPU shows; on a machine without one nothing here runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.images import write_npz
from tests.training.test_together import BASE, EPOCHS, EQUAL, EXACT, launch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PRECISE = {"training.precision": "float32", "training.learning_rate": 1e-5}


def run(folder: Path, tasks: dict[str, dict[str, Any]], *flags: str, resume: bool = False) -> dict[str, Any]:
    write_npz(folder / "small.npz", size=32, train=35, val=19, test=0)
    write_npz(folder / "few.npz", size=32, train=35, val=3, test=0)
    settings = {name: BASE | {"training.device": "cuda"} | changes for name, changes in tasks.items()}
    return launch(folder, 1, settings, *flags, resume=resume)[0]


@pytest.mark.parametrize("flags", [[], ["--forced"]], ids=["alone", "replicated"])
def test_an_interrupted_training_goes_on_to_the_same_bits(folder: Path, flags: list[str]) -> None:
    base = {"model.name": "resnet18", "training.checkpoint_every_minutes": 1e-9, "training.precision": "auto"}
    tasks = {name: base | changes for name, changes in EXACT.items()}
    tasks["float16"] = base | {"training.precision": "float16"}
    found = run(folder, tasks, *flags, resume=True)
    for name in tasks:
        assert [place.partition(",")[0] for place, _ in found[name]["resumed"]] == EPOCHS
        for place, summary in found[name]["resumed"]:
            assert summary == found[name]["whole"], (name, place)


@pytest.mark.parametrize("other", [{"training.device": "cpu"}, "--forced"], ids=["cpu", "replicated"])
def test_a_gpu_gives_what_others_give(folder: Path, other: dict[str, str] | str) -> None:
    tasks = {name: changes | PRECISE for name, changes in EQUAL.items()}
    here = run(folder, tasks)
    if isinstance(other, str):
        there = run(folder, tasks, other)
    else:
        there = run(folder, {name: changes | other for name, changes in tasks.items()})
    for name in tasks:
        rows, wanted = (found[name]["whole"]["history"] for found in (here, there))
        for row, want in zip(rows, wanted, strict=True):
            for metric in ("train_loss", "val_loss"):
                assert row[metric] == pytest.approx(want[metric], abs=1e-3), (name, metric)
