"""``src.inspect``: what lies there, and a config that training takes."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from src.data.dataset import load_dataset
from src.data.sources import load_inputs
from src.errors import DataError
from src.inspect import main
from src.utils.config import Config, DataConfig
from tests.chest import write_chest
from tests.data.test_public_layouts import export
from tests.images import write_folder, write_npz

CLOSER = "python -m src.inspect"


def inspect(path: Path | str, capsys: pytest.CaptureFixture[str], *, status: int = 0) -> tuple[str, str]:
    """Return what is printed, and the text of errors."""
    assert main([str(path), *(["--output", "start.yaml"] if status == 0 else [])]) == status
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 100
    return re.sub(r"\s+", " ", out), err


def train_config() -> DataConfig:
    return Config.from_file("start.yaml").data


def test_a_set_with_many_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chest(folder / "covid")
    out, _ = inspect("covid", capsys)
    for found in (
        "covid: 91 .png, 5 .nii.gz (not read), metadata.csv",
        "99 rows, 29 columns; UTF-8, separated by commas, Windows line ends",
        "path: filename (97 files named below images/)",
        "patient: patientid (62 different)",
        "modality: modality (X-ray 94, CT 5)",
        "label, perhaps: finding (Pneumonia/Viral/COVID-19 38,",
        "data.classes leaves out 7 of 94 rows with other labels: Pneumonia/Viral/SARS 6, todo 1",
        "the same file as in line 5 with another label, patient or split",
        "1 of 84 files are missing, and skipped: missing.png",
        "1 image cannot be read: case-004-0.png",
        "would take rows by the column view: AP 46, PA 33",
        "next: python -m src.train --config start.yaml --dry-run",
    ):
        assert found in out
    values = yaml.safe_load(Path("start.yaml").read_text())["data"]
    assert values["columns"] == {
        "path": "filename",
        "label": "finding",
        "patient_id": "patientid",
        "modality": "modality",
        "split": None,
        "image_id": None,
    }
    assert (values["images"], values["modalities"], values["on_bad_image"]) == ("images/", ["X-ray"], "skip")
    dataset = load_dataset(train_config(), folder / "cache")
    assert sum(len(split) for split in dataset.splits.values()) == 82
    assert dataset.classes == ("No Finding", "Pneumonia/Bacterial", "Pneumonia/Viral/COVID-19")


def test_a_table_in_another_format_whose_labels_have_two_spellings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(folder / "d", counts={"": 48})
    files = sorted((root / "A").rglob("*.png"))
    names = [path.parent.name.upper() if i % 2 else path.parent.name for i, path in enumerate(files)]
    lines = [f"{path.stem}.png;{name};b" for path, name in zip(files, names, strict=True)]
    for path in files:
        path.rename(root / path.name)
    text = "\r\n".join(["image;diagnosis;set of scans", *lines])
    (root / "t.csv").write_bytes(text.encode("utf-16"))
    out, _ = inspect(root / "t.csv", capsys)
    assert "UTF-16 with a byte order mark, separated by semicolons, Windows line ends" in out
    assert "no column is named like one; each image counts as a patient" in out
    assert yaml.safe_load(Path("start.yaml").read_text())["data"]["classes"] == {
        "neg": ["neg", "NEG"],
        "pos": ["pos", "POS"],
    }
    assert sum(map(len, load_dataset(train_config(), folder / "cache").splits.values())) == 48


def test_a_table_that_training_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters are not printed, and the problem is named beside the config."""
    root = write_folder(folder / "d", counts={"": 24})
    files = sorted(root.rglob("*.png"))
    rows = [f"{path.parent.name}/{path.name},{path.parent.name},p{i}" for i, path in enumerate(files)]
    rows[3] = rows[3].rpartition(",")[0] + ","
    lines = ["name,class,Patient ID,\x1b[1mview", *(f"{row},{len(row) % 2}" for row in rows)]
    (root / "t.csv").write_text("\n".join(lines))
    out, _ = inspect("d/t.csv", capsys)
    assert "line 5: patient_id is empty, as in 1 of 24 lines" in out
    assert "next: solve the problems above, then python -m src.train" in out
    assert "by the column [1mview: 1 " in out
    assert "Training refuses the data until" in out.replace(" # ", " ")
    assert "on_bad_image" not in Path("start.yaml").read_text()
    with pytest.raises(DataError, match="patient_id is empty"):
        load_dataset(train_config(), folder / "cache")


@pytest.mark.parametrize("place", ["d", "d/A"])
def test_folders_of_classes(folder: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(folder / "d", counts={"train": 16, "val": 8})
    (folder / "d/A/train/neg/copy.png").write_bytes((folder / "d/A/train/neg/p000_0.png").read_bytes())
    out, _ = inspect(folder / place, capsys)
    assert "modality A: 25 images; classes: neg 13, pos 12; splits: train 17, val 8" in out
    assert "1 files are copies of others" in out
    assert load_dataset(train_config(), folder / "cache").classes == ("neg", "pos")


def test_an_npz(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(folder / "x.npz")
    out, _ = inspect("x.npz", capsys)
    assert "train_images: (32, 16, 16) of uint8" in out
    assert "64 images; classes: 0 32, 1 32; splits: train 32, val 16, test 16" in out
    assert load_dataset(train_config(), folder / "cache").classes == ("0", "1")
    np.savez(folder / "y.npz", pixels=np.zeros(3))
    out, err = inspect("y.npz", capsys, status=2)
    assert "pixels: (3,) of float64" in out
    assert "no config to start with" in err


def test_series_and_volumes_without_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(folder / "d", "a", "b")
    (folder / "d/v.nii.gz").write_bytes(b"\x1f\x8b")
    out, err = inspect("d", capsys, status=2)
    assert "4 DICOM, 1 DICOM series of 2 patients, modality CT, 1 .nii.gz (not read)" in out
    assert "put the images of each class into a folder" in out
    assert err.startswith("error: d: no config to start with")


@pytest.mark.parametrize("path", ["nowhere", "/dev/zero"])
def test_what_cannot_be_inspected(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([path]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")


def test_errors_about_missing_images_name_what_lies_there(folder: Path) -> None:
    write_chest(folder / "covid", 4)
    found = "5 .nii.gz .not read., metadata.csv"
    with pytest.raises(DataError, match=rf"no modality 'A'.*{found}; {CLOSER} covid shows"):
        load_dataset(DataConfig(root_dir="covid"), folder / "cache")
    with pytest.raises(
        DataError, match=rf"no images in folders of classes.*5 \.nii\.gz.*{CLOSER} covid/volumes"
    ):
        load_dataset(DataConfig(root_dir="covid", modalities=("volumes",)), folder / "cache")
    with pytest.raises(DataError, match=rf"no images found.*5 \.nii\.gz.*{CLOSER} covid/volumes"):
        load_inputs("covid/volumes", DataConfig(), ("a", "b"), folder / "cache")
