"""A few kills of what `tests.stress.kills` does by the hundred, and one at each write that makes a run."""

import functools
import os
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

WRITES = ["create_run", "create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs"]


@pytest.mark.parametrize("store", ["sqlite", pytest.param("file", marks=pytest.mark.slow)])
def test_killed_at_random(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--kills", "2", "--store", store])
    assert (status, capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize("store", ["sqlite", pytest.param("file", marks=pytest.mark.slow)])
def test_killed_at_each_write(folder: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = {"sqlite": f"sqlite:///{folder}/mlflow.db", "file": f"{folder}/mlruns"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uris[store])
    write_npz(folder / "small.npz")
    killed, whole = (RunFolders(Path("outputs"), name) for name in ("killed", "whole"))
    options = [*TINY, "--resume", "auto", "--set", f"experiment.name={killed.name}"]
    for name in WRITES:
        process = Forked("train", folder, options, functools.partial(_deadly, name))
        process.wait(120)
        assert process.is_killed, process.log.read_text()
    assert Forked("train", folder, options).wait(120) == 0
    assert Forked("train", folder, [*TINY, "--set", f"experiment.name={whole.name}"]).wait(120) == 0
    open_store()
    assert run_digest(killed) == run_digest(whole)
    found = mlflow.MlflowClient().search_logged_models(["0"])
    assert sorted(logged.name for logged in found) == ["model", "model"]
    assert promote.main([]) == 0  # which loads the model, and compares it with what the run has claimed


def _deadly(name: str) -> None:
    """The process kills itself right after MLflow's client has done this."""
    write = getattr(mlflow.MlflowClient, name)

    def write_and_die(*args: object, **kwargs: object) -> None:
        write(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(mlflow.MlflowClient, name, write_and_die)
