"""Every test works in a folder of its own, with a store of its own, and reaches no network."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.images import write_npz

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
def npz(folder: Path) -> Path:
    """A small data set in one file."""
    return write_npz(folder / "small.npz")


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python(folder: Path) -> Run:
    """Runs ``python ARGS`` as a process of its own in the test's folder."""

    def run(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *args],
            cwd=folder,
            env=clean_environment(folder / "torch") | env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
