"""How well-known public data sets and exports of archives look, rebuilt small: read rightly, or refused."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from src.data.dataset import Dataset, load_dataset
from src.errors import DataError
from src.utils.config import DataConfig


def load(root: Path, modality: str = "A", **changes: object) -> Dataset:
    values = {"root_dir": str(root), "modalities": (modality,), **changes}
    return load_dataset(DataConfig.model_validate(values), Path("cache"))


def images(*paths: Path, color: bool = False, seed: int = 0) -> None:
    """Write noise that differs by the path."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (16, 16, 3) if color else (16, 16)
        random = np.random.default_rng([seed, number, *path.as_posix().encode()])
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(path)


def counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for split, label, count, _ in dataset.table():
        found.setdefault(split, {})[label] = count
    return found


@pytest.fixture
def chest(folder: Path) -> Path:
    """Chest X-ray pneumonia of Kaggle, as it is unpacked on a Mac."""
    root = folder / "chest_xray"
    for split, count in {"train": 6, "val": 2, "test": 3}.items():
        for number in range(count):
            images(root / split / "NORMAL" / f"IM-{number:04d}-0001.jpeg")
            images(root / split / "PNEUMONIA" / f"person{number}_bacteria_{number}.jpeg")
        copy = root / "__MACOSX/chest_xray" / split / "NORMAL"
        copy.mkdir(parents=True)
        (copy / "._IM-0001-0001.jpeg").write_bytes(b"\0\5\x16\7")
        for place in (root, root / split, root / split / "NORMAL"):
            (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return root


def test_splits_beside_what_a_mac_leaves(chest: Path) -> None:
    dataset = load(chest.parent, "chest_xray")
    each = {"train": 6, "val": 2, "test": 3}
    assert counts(dataset) == {split: {"NORMAL": n, "PNEUMONIA": n} for split, n in each.items()}
    assert dataset.warnings == (f"{chest}: left out by data.exclude: 1 folder __MACOSX",)


def test_a_second_copy_beside_the_splits_is_refused(chest: Path) -> None:
    shutil.copytree(chest / "train", chest / "chest_xray/train")
    with pytest.raises(DataError, match=r"Move chest_xray away, or leave it out with data\.exclude"):
        load(chest.parent, "chest_xray")
    assert (
        len(load(chest.parent, "chest_xray", exclude=(".*", "__MACOSX", "chest_xray")).splits["train"]) == 12
    )


def test_splits_in_place_of_modalities_are_named(chest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "holds test, train, val, where folders of modalities belong"
    with pytest.raises(DataError, match=rf"{message}.*--data {chest.parent} --modality chest_xray$"):
        load(chest)
    monkeypatch.chdir(chest)
    with pytest.raises(DataError, match=rf"{message}.*--data {chest.parent} --modality chest_xray$"):
        load(Path())


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("benign (1).png", ["benign (1)_mask.png", "benign (1)_mask_1.png"]),  # BUSI
        ("ISIC_0000000.jpg", ["ISIC_0000000_Segmentation.png", "ISIC_0000000_superpixels.png"]),  # ISIC
        ("TCGA_CS_4941_19960909_1.tif", ["TCGA_CS_4941_19960909_1_mask.tif"]),  # LGG
    ],
)
def test_masks_beside_their_images(folder: Path, image: str, masks: list[str]) -> None:
    for name in ("benign", "malignant"):
        for number in range(4):
            place = folder / "d/A" / name / str(number)
            images(place / image, *(place / mask for mask in masks))
    dataset = load(folder / "d", test_fraction=0)
    assert counts(dataset) == {"train": {"benign": 3, "malignant": 3}, "val": {"benign": 1, "malignant": 1}}
    (note,) = dataset.warnings
    assert "left out by data.exclude: 8 images {stem}_" in note


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            "masks",
            r"images of the class 'images' only.*left out by data\.exclude: 1 folder masks",
        ),  # Kvasir-SEG
        ("labels", "the folders images and labels look like images and their masks"),
        ("Ground Truth", "the folders images and Ground Truth look like"),  # CVC-ClinicDB
    ],
)
def test_images_and_masks_in_two_folders_are_no_classes(folder: Path, masks: str, message: str) -> None:
    images(*(folder / "d/A" / kind / f"{number}.png" for kind in ("images", masks) for number in range(8)))
    with pytest.raises(DataError, match=message):
        load(folder / "d")


def test_patients_in_place_of_classes_are_named(folder: Path) -> None:
    for patient in range(4):
        images(*(folder / f"d/A/TCGA_CS_{patient}/TCGA_CS_{patient}_{slice}.tif" for slice in range(2)))
    with pytest.raises(DataError, match=r"class TCGA_CS_0 has 2 patients.*if this is a folder of a patient"):
        load(folder / "d")


def table(path: Path, header: str, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


@pytest.fixture
def kaggle(folder: Path) -> Path:
    """A folder of images, to which a table of names without endings belongs."""
    images(*(folder / f"k/train_images/{number:012x}.png" for number in range(8)), color=True)
    return folder / "k"


NAMES = [f"{number:012x}" for number in range(8)]


@pytest.mark.parametrize(
    "header", ["id_code,diagnosis", "image_id,MEL,NV", "image,level", "Image Index,Finding Labels"]
)
def test_a_table_of_kaggle_is_refused_with_the_columns_that_it_takes(kaggle: Path, header: str) -> None:
    rows = [[name, *"10"][: header.count(",") + 1] for name in NAMES]
    path = table(kaggle / "train.csv", header, rows)
    first = header.replace(",", ", ")
    with pytest.raises(
        DataError, match=rf"no column path, label, modality; the first line holds {first}, and"
    ):
        load(path)
    with pytest.raises(DataError, match=rf"modalities there: train_images.*a manifest.*--data {path}$"):
        load(kaggle)
    with pytest.raises(DataError, match="images outside of class folders, which have no class: 8"):
        load(kaggle, "train_images")


def test_a_table_with_one_column_for_each_class_is_refused(kaggle: Path) -> None:
    rows = [[f"train_images/{name}.png", "A", str(i % 2), str(1 - i % 2)] for i, name in enumerate(NAMES)]
    path = table(kaggle / "manifest.csv", "path,modality,MEL,NV", rows)
    with pytest.raises(
        DataError, match=r"no column label.*write the class of each image into one column label"
    ):
        load(path)


def test_names_without_their_endings(kaggle: Path) -> None:
    for place, ending, message in (
        ("train_images/", "", "000000000000.png is there: name the files in the manifest with their endings"),
        ("", ".png", "the paths in a manifest start at its folder"),
    ):
        rows = [[f"{place}{name}{ending}", str(i % 2), "A"] for i, name in enumerate(NAMES)]
        table(kaggle / "manifest.csv", "path,label,modality", rows)
        with pytest.raises(DataError, match=f"no image can be read.*No such file or directory; {message}"):
            load(kaggle)
    rows = [[f"train_images/{name}.png", str(i % 2), "A"] for i, name in enumerate(NAMES)]
    table(kaggle / "manifest.csv", "path,label,modality", rows)
    assert counts(load(kaggle, test_fraction=0)) == {"train": {"0": 3, "1": 3}, "val": {"0": 1, "1": 1}}


def export(root: Path, *patients: str) -> Path:
    """A file set as archives burn it: a DICOMDIR, and files without endings; return the first series."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    pixels = dataset.pixel_array
    for place, patient in enumerate(patients):
        series = root / f"PAT{place:05d}/STU00000/SER00000"
        series.mkdir(parents=True)
        for number in range(2):
            dataset.PatientID = patient
            dataset.PixelData = np.roll(pixels, ord(patient) + 40 * number, axis=0).tobytes()
            dataset.save_as(series / f"IMG{number:05d}")
    shutil.copy(str(get_testdata_file("DICOMDIR")), root)
    return root / "PAT00000/STU00000/SER00000"


def test_exports_of_an_archive(folder: Path) -> None:
    export(folder / "d/CT/neg", *"abcd")
    series = export(folder / "d/CT/pos", *"efgh")
    (folder / "d/CT/pos/AUTORUN.INF").write_text("[autorun]")
    settings = {"window": (-160.0, 240.0), "test_fraction": 0}
    dataset = load(folder / "d", "CT", **settings)
    assert counts(dataset) == {"train": {"neg": 6, "pos": 6}, "val": {"neg": 2, "pos": 2}}
    assert {split: patients for split, _, _, patients in dataset.table()} == {"train": 3, "val": 1}
    assert dataset.channels == 1
    (alike,) = dataset.warnings
    assert alike.startswith("near-duplicates: 4 of 4 val images")  # one sample file is all of them
    shutil.copy(str(get_testdata_file("reportsi.dcm")), series / "SR000000")
    with pytest.raises(DataError, match=r"SR000000: holds no image .it may be a report.*on_bad_image=skip"):
        load(folder / "d", "CT", **settings)
    assert load(folder / "d", "CT", **settings, on_bad_image="skip").fingerprint == dataset.fingerprint


def test_an_export_without_classes_is_refused(folder: Path) -> None:
    export(folder / "d/CT", *"abc")
    with pytest.raises(DataError, match=r"class PAT00000 has 1 patient.*if this is a folder of a patient"):
        load(folder / "d", "CT")
