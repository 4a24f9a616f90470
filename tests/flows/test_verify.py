"""``python -m src.verify resume``: a killed training gives the same, and where it does not, it says so."""

import os
from pathlib import Path

import pytest
import torch

from src import verify
from src.tracking.store import open_store
from src.train import main
from src.training.run_folder import RunFolders
from src.verification.run_digest import run_digest
from tests.conftest import ROOT, Run
from tests.flows.processes import TINY

pytestmark = pytest.mark.slow

# A resumed training that is not the same: each of its steps moves one weight by the smallest amount there is.
UNEQUAL = """import sys
import torch
from torch.optim import optimizer


def move(optimizer, *_):
    weight = optimizer.param_groups[0]["params"][0].data.view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


if "--resume" in sys.argv:
    optimizer.register_optimizer_step_post_hook(move)
"""


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz")
def test_identical(folder: Path, run_python: Run) -> None:
    done = run_python("-m", "src.verify", "resume", "--kills", "1", "--moments", "1", *TINY, "--epochs", "6")
    assert (done.returncode, done.stderr) == (0, "")
    assert "kill 1 of 1 after" in done.stdout
    assert "identical after 1 times kill -9" in done.stdout
    assert "DIFFERENT" not in done.stdout
    assert sorted(path.name for path in folder.iterdir() if path.name != "torch") == ["small.npz"]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz")
def test_different(folder: Path, run_python: Run) -> None:
    (folder / "fault").mkdir()
    (folder / "fault/sitecustomize.py").write_text(UNEQUAL)
    options = [*TINY, "--epochs", "3", "--kills", "1", "--store", "file"]
    done = run_python("-m", "src.verify", "resume", *options, PYTHONPATH=f"{folder}/fault{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "error: not identical: latest.pth weights" in done.stderr
    assert "DIFFERENT" in done.stdout
    (kept,) = folder.glob(".verify-*")
    assert str(kept) in done.stderr
    assert (kept / "killed/checkpoints/latest.pth").exists()


@pytest.mark.usefixtures("npz")
def test_what_must_not_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """Each thing that a training leaves is told from what is almost the same."""
    assert main([*TINY, "--set", "experiment.name=mine", "--set", "training.ema_decay=0.9"]) == 0
    capsys.readouterr()
    open_store()
    folders = RunFolders(Path("outputs"), "mine")
    before = run_digest(folders)
    assert before["metrics logged twice"] == "0"
    latest = folders.checkpoints / "latest.pth"
    state = torch.load(latest, weights_only=True)
    flip = next(iter(state["trained_model_state_dict"].values())).view(-1)
    flip[0] = -flip[0]
    torch.save(state, latest)
    assert differing(before, run_digest(folders)) == ["weights not averaged"]
    folders.history.write_bytes(folders.history.read_bytes().replace(b"\n", b"\r\n"))
    table = folders.results / "predictions/test.csv"
    table.write_bytes(table.read_bytes() + b" ")
    assert differing(before, run_digest(folders)) == [
        "weights not averaged",
        "training_history.csv",
        "predictions/test.csv",
    ]


def differing(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return [name for name in one if one[name] != two[name]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "auto"], "--resume: src.verify trains twice by itself; leave it out"),
        (["--kills", "0"], "expected a whole number from 1, got '0'"),
        (["--model", "resnet999"], "the training uninterrupted ended with exit status 2: error: model.name"),
    ],
)
def test_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["resume", *options]) in (1, 2)
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("error: ") <= 2
    assert "Traceback" not in errors
