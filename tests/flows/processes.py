"""Commands as real processes."""

import os
import time
from pathlib import Path

import mlflow
from mlflow.entities import Run as MlflowRun

from tests.conftest import FROM_SCRATCH, Process, start_python

# The smallest model: these tests are about processes, not about what is learnt.
TINY = ["--data", "small.npz", "--model", "shufflenet_v2_x0_5", "--epochs", "1"]
TINY += ["--set", "training.batch_size=8", *FROM_SCRATCH]
STORES = {"sqlite": "", "file": "./mlruns"}
STARTED: list[Process] = []
"""What `start` has started for the test that runs."""


def only_run(folder: Path, store: str = "") -> MlflowRun:
    (run,) = runs(folder, store)
    return run


def client_of(folder: Path, store: str = "") -> mlflow.MlflowClient:
    """Of a folder's own store, SQLite or plain files, or of any that ``store`` names by its URI."""
    if "://" in store:
        return mlflow.MlflowClient(store)
    if store:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return mlflow.MlflowClient(f"file://{folder}/mlruns" if store else f"sqlite:///{folder}/mlflow.db")


def runs(folder: Path, store: str = "") -> list[MlflowRun]:
    return list(client_of(folder, store).search_runs(["0"]))


def start(folder: Path, *args: str, group: bool = False, **env: str) -> Process:
    process = start_python(folder, *args, group=group, **env)
    STARTED.append(process)
    return process


def wait_for_epoch(folder: Path, process: Process) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("outputs/*/checkpoints/latest.pth")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
