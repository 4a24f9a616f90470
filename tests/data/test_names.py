"""Names of classes, patients and splits in several spellings."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.data.sources import load_inputs
from src.errors import DataError
from src.utils.config import DataConfig
from tests.images import make_images, write_folder, write_npz


def load(root: Path, **changes: object) -> Dataset:
    return load_dataset(DataConfig.model_validate({"root_dir": str(root), **changes}), root.parent / "cache")


def write_manifest(root: Path, *columns: str, rows: list[tuple[str, ...]]) -> Path:
    """Each row is one image, with the cells of the columns after path and modality."""
    root.mkdir()
    images, _ = make_images(len(rows), 16, 0)
    lines = [",".join(["path", "modality", *columns])]
    for number, (image, cells) in enumerate(zip(images, rows, strict=True)):
        Image.fromarray(image).save(root / f"{number:02d}.png")
        lines.append(",".join([f"{number:02d}.png", "A", *cells]))
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


def label_rows(*labels: str) -> list[tuple[str, ...]]:
    return [(label,) for label in labels * 8]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("0", "1", "0.0", "1.0"), ("0", "1")),  # pandas writes a column with gaps as floats
        (("0.0", "1.0"), ("0.0", "1.0")),  # one spelling stays as it is
        (("0", "1.0"), ("0", "1.0")),
        (("caf\u00e9", "b", "cafe\u0301"), ("b", "caf\u00e9")),
    ],
)
def test_the_same_label_is_one_class(folder: Path, labels: tuple[str, ...], classes: tuple[str, ...]) -> None:
    dataset = load(write_manifest(folder / "d", "label", rows=label_rows(*labels)))
    assert dataset.classes == classes
    assert sum(len(split) for split in dataset.splits.values()) == 8 * len(labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("True", "FALSE", "TRUE"), r"same class: 'True' \(line 2\) and 'TRUE' \(line 4\)"),
        (("neg", "pos", "Neg"), r"same class: 'neg' \(line 2\) and 'Neg' \(line 4\)"),
        (("no tumor", "tumor", "no_tumor"), "'no tumor' .* and 'no_tumor'"),
        (("1", "2", "01"), "'1' .* and '01'"),
        (("x", "2", "2.0"), "'2' .* and '2.0'"),
        (("0", "1", "nan"), "line 4: the label 'nan' means a missing label; label or remove the images"),
        (("0", "1", "-1"), "line 4: the label '-1' means a missing label"),
        (("a", "b", "a|b"), r"line 4: the label 'a\|b' holds several labels.*choose one class"),
        (("a", "b", "b;a"), "line 4: the label 'b;a' holds several labels"),
    ],
)
def test_a_doubtful_label_is_refused(folder: Path, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_manifest(folder / "d", "label", rows=label_rows(*labels)))


def test_a_class_with_a_separator_in_its_name_stays(folder: Path) -> None:
    labels = ("adenocarcinoma; NOS", "normal")
    assert load(write_manifest(folder / "d", "label", rows=label_rows(*labels))).classes == labels


def patient_rows(*spellings: str) -> list[tuple[str, ...]]:
    sides = ("train", "val", "test")
    return [(str(i % 2), spelling, sides[i // 2 % 3]) for i, spelling in enumerate(spellings)]


COLUMNS = ("label", "patient_id", "split")


def test_a_patient_as_a_number_of_two_kinds_is_one_patient(folder: Path) -> None:
    rows = patient_rows("7", "8", "7.0", "9", "10", "11.0")
    root = write_manifest(folder / "d", *COLUMNS, rows=rows)
    with pytest.raises(DataError, match="1 patient in train and val"):
        load(root, on_leak="error")
    assert load(root, on_leak="allow").counts["allowed_leaks"] == 1


@pytest.mark.parametrize(
    ("spellings", "message"),
    [
        (("007", "8", "7", "9", "10", "11"), r"same patient: '007' \(00.png\) and '7' \(02.png\)"),
        (("P1", "P2", "p1", "P4", "P5", "P6"), "'P1' .* and 'p1'"),
        (("P01", "P2", "P1", "P4", "P5", "P6"), "'P01' .* and 'P1'"),
        (("P-1", "P2", "P_1", "P4", "P5", "P6"), "'P-1' .* and 'P_1'"),
        (("nan", "1", "nan", "2", "3", "4"), "the patient 'nan' means an unknown patient"),
        (("1.23E+11", "1", "5", "2", "3", "4"), "rounded.*export the column as text"),
    ],
)
def test_a_doubtful_patient_is_refused(folder: Path, spellings: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(write_manifest(folder / "d", *COLUMNS, rows=patient_rows(*spellings)))
    assert not any(repr(spelling) in error.value.public for spelling in spellings)


def test_patients_that_differ_stay_apart(folder: Path) -> None:
    spellings = ("1.2.840.1", "1.2.840.10", "a07b", "a70b", "1.10", "1.1", "x0100", "x0010")
    dataset = load(write_manifest(folder / "d", *COLUMNS, rows=patient_rows(*spellings)), on_leak="error")
    assert {p for split in dataset.splits.values() for p in split.patients} == set(range(8))


def test_patients_in_the_names_of_files_are_compared_too(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    (root / "A/val/neg/p000_0.png").rename(root / "A/val/neg/p0_0.png")
    with pytest.raises(DataError, match=r"same patient: 'p000' .* and 'p0' \(A/val/neg/p0_0.png\)"):
        load(root, patient_regex=r"^(p\d+)_")


def test_classes_in_folders(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    (root / "A/val/neg").rename(root / "A/val/Neg")
    with pytest.raises(
        DataError, match=r"same class: 'neg' .folder .*train/neg. and 'Neg' .folder .*val/Neg"
    ):
        load(root)
    (root / "A/val/Neg").rename(root / "A/val/neg ")
    assert load(root).classes == ("neg", "pos")


@pytest.mark.parametrize("names", [("Train", "Val", "Test"), ("training", "validation", "TESTING")])
def test_folders_of_splits_in_their_usual_spellings(folder: Path, names: tuple[str, ...]) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8, "test": 4})
    expected = load(root)
    for plain, name in zip(("train", "val", "test"), names, strict=True):
        (root / "A" / plain).rename(root / "A" / name)
    found = load(root)
    assert found.table() == expected.table()
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Training", "Testing"), "holds Testing, Training; expected train, val.*Move some patients"),
        (("fold_0", "fold_1"), "folder fold_0: the split 'fold_0' is unknown.*data.folds"),
        (("train", "val", "holdout"), "folder holdout: the split 'holdout' is unknown"),
        (("train", "val", "validation"), "'val' .* and 'validation' .* may both be val"),
        (("train1", "train2", "val"), "the split 'train1' is unknown"),
        (("train", "val", "glioma"), "holds glioma, train, val; expected train, val and perhaps test"),
    ],
)
def test_other_folders_of_splits_are_refused(folder: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write_folder(folder / "d", counts=dict.fromkeys(names, 4)))


def test_splits_of_a_manifest_in_their_usual_spellings(folder: Path) -> None:
    sides = ("Train", "train", "Validation", "validation", "TEST", "TEST")
    rows: list[tuple[str, ...]] = [(str(i % 2), side) for i, side in enumerate(sides)]
    assert load(write_manifest(folder / "d", "label", "split", rows=rows)).table() == [
        (split, label, 1, None) for split in ("train", "val", "test") for label in "01"
    ]


def rename_arrays(path: Path, **names: str) -> Path:
    arrays = dict(np.load(path))
    np.savez(path, **{re.sub("^[a-z]+", lambda m: names.get(m[0], m[0]), key): arrays[key] for key in arrays})
    return path


def test_arrays_of_splits_in_their_usual_spellings(folder: Path) -> None:
    path = write_npz(folder / "d.npz")
    expected = load(path)
    found = load(rename_arrays(path, train="training", val="valid", test="testing"))
    assert (found.fingerprint, found.table()) == (expected.fingerprint, expected.table())


@pytest.mark.parametrize(
    ("name", "message"),
    [("holdout", "array holdout_images: the split 'holdout' is unknown"), ("val2", "'val2'")],
)
def test_other_arrays_of_splits_are_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(rename_arrays(write_npz(folder / "d.npz"), test=name))


def test_negative_labels_of_an_npz_are_refused(folder: Path) -> None:
    images, _ = make_images(4, 8, 0)
    labels = np.array([0, 1, -1, 1])
    arrays = {
        f"{s}_{kind}": a for s in ("train", "val") for kind, a in (("images", images), ("labels", labels))
    }
    np.savez(folder / "d.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="train_labels holds -1, which means a missing label"):
        load(folder / "d.npz")


def test_labels_of_images_to_predict_meet_the_model_s_classes(folder: Path) -> None:
    root = write_manifest(folder / "d", "label", rows=label_rows("0.0", "1.0", "0", "1")[:4])
    config = DataConfig(image_size=16, channels=1)
    inputs = load_inputs(str(root), config, ("0", "1"), folder / "c")
    assert inputs.records.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"same class: 'NEG' .line 2. and 'neg' .a class of the model."):
        load_inputs(
            str(write_manifest(folder / "e", "label", rows=[("NEG",)])), config, ("neg", "pos"), folder / "c"
        )
