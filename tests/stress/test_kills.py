"""A few kills of what `tests.stress.kills` does by the hundred, and one at each write that makes a run."""

import functools
import os
import pkgutil
import signal
from pathlib import Path

import mlflow
import pytest

from src import promote
from src.tracking.store import open_store
from src.training.run_folder import RunFolders
from src.verification.run_digest import run_digest
from tests.flows.processes import TINY
from tests.forked import Forked
from tests.images import write_npz
from tests.stress.kills import main

pytestmark = pytest.mark.slow

WRITES = [
    ("mlflow:MlflowClient", "create_run", 1),
    ("src.training.run_folder", "write_run_id", 1),
    ("src.training.run_folder", "write_run_id", 2),
    ("src.experiment.report_run", "atomic_write_text", 1),
    ("mlflow:MlflowClient", "log_batch", 1),
    ("mlflow:MlflowClient", "log_batch", 2),
    ("mlflow:MlflowClient", "log_inputs", 1),
    ("mlflow:MlflowClient", "create_logged_model", 1),
    ("mlflow:MlflowClient", "log_model_artifacts", 1),
    ("mlflow:MlflowClient", "finalize_logged_model", 1),
    ("mlflow:MlflowClient", "log_outputs", 1),
]
"""Functions that a training calls, by module or class, and after which call it is killed."""


@pytest.mark.parametrize("store", ["sqlite", pytest.param("file", marks=pytest.mark.exhaustive)])
def test_killed_at_random(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--kills", "2", "--store", store])
    assert (status, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize("store", ["sqlite", pytest.param("file", marks=pytest.mark.exhaustive)])
def test_killed_at_each_write(folder: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = {"sqlite": f"sqlite:///{folder}/mlflow.db", "file": f"{folder}/mlruns"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uris[store])
    write_npz(folder / "small.npz")
    killed, whole = (RunFolders(Path("outputs"), name) for name in ("killed", "whole"))
    options = [*TINY, "--resume", "auto", "--set", f"experiment.name={killed.name}"]
    for owner, name, calls in WRITES:
        process = Forked("train", folder, options, functools.partial(_deadly, owner, name, calls))
        process.wait(120)
        assert process.is_killed, process.log.read_text()
    assert Forked("train", folder, options).wait(120) == 0
    assert Forked("train", folder, [*TINY, "--set", f"experiment.name={whole.name}"]).wait(120) == 0
    open_store()
    assert run_digest(killed) == run_digest(whole)
    runs = mlflow.MlflowClient().search_runs(["0"])
    resumed, uninterrupted = (
        next(run for run in runs if run.info.run_name == folders.name) for folders in (killed, whole)
    )
    assert len(runs) == 3  # with the one that was killed before it got folders
    assert resumed.inputs
    assert uninterrupted.inputs
    assert resumed.inputs.to_dictionary() == uninterrupted.inputs.to_dictionary()
    named = {"experiment.name": whole.name}
    assert resumed.data.params | named == uninterrupted.data.params
    found = mlflow.MlflowClient().search_logged_models(["0"])
    assert sorted(logged.name for logged in found) == ["model", "model"]
    assert promote.main([]) == 0  # which loads the model, and compares it with what the run has claimed


def _deadly(owner: str, name: str, calls: int) -> None:
    """Make the process kill itself right after this call of a function."""
    holder = pkgutil.resolve_name(owner)
    write, earlier = getattr(holder, name), iter(range(1, calls))

    def write_and_die(*args: object, **kwargs: object) -> None:
        write(*args, **kwargs)
        if next(earlier, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(holder, name, write_and_die)
