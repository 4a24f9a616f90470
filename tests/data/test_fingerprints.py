"""Fingerprints are recorded with runs that were made long ago, so they stay as they are, to the byte."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.utils.config import Config, DataConfig


def write(path: Path, number: int) -> None:
    """An image that no two numbers share, without random numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.arange(64, dtype=np.int64) * (number + 1) % 251).astype(np.uint8).reshape(8, 8)).save(
        path
    )


@pytest.fixture
def root(folder: Path) -> Path:
    """Two modalities of 20 patients, two images each; one of A is there three times, one of P is missing."""
    for number in range(40):
        name = f"p{number // 2:02d}_{number % 2}.png"
        for shift, modality in ((0, "A"), (100, "P")):
            write(folder / "d" / modality / ("neg", "pos")[number // 2 % 2] / name, number + shift)
    write(folder / "d/A/pos/p00_7.png", 3)
    write(folder / "d/A/neg/p40_0.png", 3)
    (folder / "d/P/neg/p06_1.png").unlink()
    return folder / "d"


def load(root: Path, **settings: object) -> Dataset:
    """The data of a run of an earlier version, whose config said nothing of how the split is stratified."""
    values = {"data": DataConfig(root_dir=str(root)).model_dump(mode="json") | settings}
    del values["data"]["stratify"]
    return load_dataset(Config.from_dict(values).data, root.parent / "c")


PATIENTS = {"patient_regex": r"^(p\d+)_"}
BOTH = {"modalities": ("A", "P"), **PATIENTS}


@pytest.mark.parametrize(
    ("settings", "data", "split"),
    [
        ({}, "4bd98793f4651caf", "ef32d90e2c943d10"),
        (PATIENTS, "3593a4a54498350e", "c8ec2a8ea27371c2"),
        ({**PATIENTS, "on_leak": "allow", "split_seed": 3}, "1077274a8931592d", "2c9c9b2ea935fba7"),
        ({**PATIENTS, "folds": 3, "fold": 1}, "d7fcd161e483781c", "74371e5de11b0b60"),
        ({"positive_class": "neg", "folds": 3}, "7b056d673d82056a", "766685125f04b52c"),
        (BOTH, "897a2817d6e9db66", "7bd527815b45b383"),
    ],
)
def test_of_folders(root: Path, settings: dict[str, object], data: str, split: str) -> None:
    for _ in range(2):
        dataset = load(root, **settings)
        assert (dataset.fingerprint[:16], dataset.split_fingerprint[:16]) == (data, split)


def test_of_a_manifest_with_leaks(root: Path) -> None:
    lines = ["path,label,modality,patient_id,split"]
    for number, file in enumerate(sorted((root / "A").rglob("*.png"), reverse=True)):
        patient, split = number % 11, ("train", "val", "test")[number % 11 % 3]
        lines.append(f"{file.relative_to(root)},{file.parent.name},A,x{patient},{split}")
    (root / "manifest.csv").write_text("\n".join(lines))
    dataset = load(root)
    assert dataset.counts["leaked_images"] == 1
    assert (dataset.fingerprint[:16], dataset.split_fingerprint[:16]) == (
        "e2a3d3108f05dbc3",
        "8d5d9d10c23bf4c3",
    )


def test_of_the_demo(folder: Path) -> None:
    dataset = load_dataset(DataConfig(modalities=("A", "P")), folder / "c")
    assert (dataset.fingerprint[:16], dataset.split_fingerprint[:16]) == (
        "cfd3e86bdb4a9a94",
        "d367eb715aae1295",
    )
