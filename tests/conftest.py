"""Every test works in a folder of its own, with a store of its own, and reaches no network."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parent.parent

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


def make_images(count: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise ``(count, size, size)`` in which class 1 is brighter, not so much that it is never mistaken."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    level = 110 + 30 * labels + random.normal(0, 20, count)
    images = random.normal(level[:, None, None], 30, (count, size, size))
    return images.clip(0, 255).astype(np.uint8), labels


def write_npz(path: Path, *, size: int = 16, train: int = 32, val: int = 16, test: int = 16) -> Path:
    """A small file in MedMNIST's format."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for seed, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        if count:
            images, labels = make_images(count, size, seed)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels.astype(np.uint8)[:, None]}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_folder(root: Path, *, counts: dict[str, int], modality: str = "A", size: int = 16) -> Path:
    """PNG files ``root/{modality}/{split}/{neg,pos}/*.png``; the split "" leaves that level out."""
    for seed, (split, count) in enumerate(counts.items()):
        images, labels = make_images(count, size, seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / modality / split / ("neg", "pos")[label] / f"p{number // 2:03d}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


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
