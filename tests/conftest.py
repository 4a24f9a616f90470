"""Every test works in a folder of its own, with a store of its own, and reaches no network."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.forked import ForkedProcess
from tests.images import write_npz
from tests.stores import place_store

ROOT = Path(__file__).parent.parent

FROM_SCRATCH = ["--set", "model.weights=none"]
"""Options of every command under test that trains: there is no network to download weights from."""

torch.set_num_threads(1)  # a fixed number: sums over threads round differently


def clean_environment(torch_home: Path) -> dict[str, str]:
    """The environment of a command under test: nothing of the caller's MLflow settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TORCH_HOME": str(torch_home),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the test."""
    for key in [key for key in os.environ if key.startswith("MLFLOW_")]:
        monkeypatch.delenv(key)
    for key, value in clean_environment(tmp_path / "torch").items():
        if os.environ.get(key) != value:
            monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sqlite(folder: Path) -> Path:
    """MLflow's default store in the test's folder, where a first command would make it."""
    return place_store(folder / "mlflow.db")


@pytest.fixture
def npz(folder: Path) -> Path:
    """A small data set in one file."""
    return write_npz(folder / "small.npz")


Process = subprocess.Popen[str] | ForkedProcess
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def start_python(folder: Path, *args: str, group: bool = False, **env: str) -> Process:
    """Start ``python ARGS`` in a folder; a module of ours is forked where nothing of the start matters."""
    environment = clean_environment(folder / "torch") | env
    if args[0] == "-m" and args[1].startswith("src.") and "PYTHONPATH" not in env:
        return ForkedProcess(args[1], args[2:], folder, environment, new_session=group)
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


@pytest.fixture
def run_python(folder: Path) -> Run:
    """Runs ``python ARGS`` as a process of its own in the test's folder."""

    def run(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        process = start_python(folder, *args, group=False, **env)
        try:
            output = process.communicate(timeout=240)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.wait(), *output)

    return run
