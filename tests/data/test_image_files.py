"""Which files of a folder are taken, and what is said of the others."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.data.sources import load_inputs
from src.errors import ConfigError, DataError
from src.utils.config import Config, DataConfig
from tests.images import make_images, write_folder


def load(root: Path, **changes: object) -> Dataset:
    return load_dataset(DataConfig.model_validate({"root_dir": str(root), **changes}), root.parent / "cache")


def count(dataset: Dataset) -> int:
    return sum(len(split) for split in dataset.splits.values())


@pytest.fixture
def root(folder: Path) -> Path:
    return write_folder(folder / "d", counts={"": 40})


@pytest.mark.parametrize("ending", ["webp", "jfif", "jpe", "gif", "jp2", "pgm", "WEBP"])
def test_other_formats_are_read(root: Path, ending: str) -> None:
    files = sorted(root.rglob("*.png"))[:4]
    for file in files:
        with Image.open(file) as image:
            image.save(file.with_suffix(f".{ending}"))
        file.unlink()
    dataset = load(root)
    assert count(dataset) == 40
    # WebP and the palette of a GIF are always in color.
    assert not [note for note in dataset.warnings if "three channels: A/neg/p000_0." not in note]


def test_gif_keeps_its_pixels_and_has_one_frame(root: Path) -> None:
    image, other = (Image.fromarray(image) for image in make_images(2, 16, 9)[0])
    image.save(root / "A/neg/a.gif")
    assert count(load(root)) == 41
    image.save(root / "A/neg/a.gif", save_all=True, append_images=[other])
    with pytest.raises(DataError, match=r"a.gif: holds several pages"):
        load(root)


def test_a_class_that_loses_many_files_is_refused(root: Path) -> None:
    for i in range(2):
        (root / f"A/neg/{i}.nii.gz").write_bytes(b"x")
    (root / "A/pos/1.npy").write_bytes(b"x")
    (root / "A/pos/Doe").write_bytes(b"x")
    dataset = load(root)
    what = "files that are not read as images"
    kinds = "2 .nii.gz (neg: 2), 1 .npy (pos: 1), 1 without an ending (pos: 1)"
    assert dataset.warnings == (f"{root}/A: {what}: {kinds}",)
    (root / "A/neg/2.nii.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"3 of 23 files of class neg are not read.*convert.*data\.exclude"):
        load(root)
    assert load(root, exclude=("*.nii.gz",)).counts == dataset.counts


def test_a_class_of_other_files_only_does_not_vanish(root: Path) -> None:
    (root / "A/third").mkdir()
    assert load(root).warnings == (f"{root}/A: folders of classes without an image: third",)
    (root / "A/third/a.nii").write_bytes(b"x")
    with pytest.raises(DataError, match="1 of 1 file of class third"):
        load(root)


def test_what_is_no_image_is_not_told(root: Path) -> None:
    for name in (
        "a.txt",
        "labels.CSV",
        "Thumbs.db",
        "desktop.ini",
        "README",
        "DICOMDIR",
        ".DS_Store",
        "x.xml",
    ):
        (root / "A/neg" / name).write_bytes(b"\0" * 128 + b"DICM")
    dataset = load(root)
    assert (count(dataset), dataset.warnings) == (40, ())


def test_names_of_files_are_not_told(root: Path) -> None:
    (root / "A/neg/mri.johndoe").write_bytes(b"x")
    (note,) = load(root).warnings
    assert note.endswith("1 with another ending (neg: 1)")


def test_masks_and_copies_are_left_out_and_counted(root: Path) -> None:
    expected = load(root).fingerprint
    for image in sorted((root / "A/neg").glob("*.png"))[:6]:
        for place in ("@eaDir", "__MACOSX", "masks", ".thumbnails"):
            (image.parent / place).mkdir(exist_ok=True)
            shutil.copy(image, image.parent / place)
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(image.with_name(f"{image.stem}_Mask.png"))
        Image.fromarray(np.ones((16, 16), np.uint8)).save(image.with_name(f"{image.stem}_mask_1.tif"))
        image.with_name(f"._{image.name}").write_bytes(b"x")
    dataset = load(root)
    assert dataset.fingerprint == expected
    assert dataset.warnings == (
        f"{root}/A: left out by data.exclude: 1 folder .*, 6 images .*, 1 folder @eaDir, 1 folder __MACOSX, "
        "1 folder masks, 6 images {stem}_mask.*, 6 images {stem}_mask_*.*",
    )


def test_a_mask_without_its_image_is_an_image(root: Path) -> None:
    for image in sorted((root / "A/neg").glob("*.png")):
        image.rename(image.with_name(f"{image.stem}_mask.png"))
    dataset = load(root)
    assert (count(dataset), dataset.warnings) == (40, ())


def test_exclude_is_the_users(root: Path) -> None:
    image = min((root / "A/neg").glob("*.png"))
    changed = image.with_name(f"{image.stem}_mask.png")
    Image.fromarray(make_images(1, 16, 7)[0][0]).save(changed)
    assert count(load(root)) == 40
    assert count(load(root, exclude=())) == 41
    dataset = load(root, exclude=("p000*",))
    assert count(dataset) == 38
    assert dataset.warnings == (f"{root}/A: left out by data.exclude: 3 images p000*",)
    with pytest.raises(ConfigError, match=r"data\.exclude.*'a/b' must match the name"):
        Config().updated({"data.exclude": ["a/b"]})


def test_a_stored_config_leaves_out_what_it_did(root: Path) -> None:
    first = root / "A/neg/p000_0.png"
    Image.fromarray(make_images(1, 16, 7)[0][0]).save(first.with_suffix(".webp"))
    Image.fromarray(make_images(1, 16, 8)[0][0]).save(first.with_name("p000_0_mask.png"))
    stored = Config().to_dict()
    del stored["data"]["exclude"]
    config = Config.from_dict(stored).data
    dataset = load(root, exclude=config.exclude)
    assert count(dataset) == 41  # the mask, not the .webp
    assert dataset.warnings == (f"{root}/A: left out by data.exclude: 1 image *.webp",)
    assert Config.from_dict({"data": {"root_dir": "d"}}) == Config().updated({"data.root_dir": "d"})


def test_linked_folders_are_followed_once(root: Path) -> None:
    expected = load(root).fingerprint
    patient = root.parent / "patient"
    patient.mkdir()
    for image in sorted((root / "A/neg").glob("*.png"))[:6]:
        image.rename(patient / image.name)
    link = root / "A/neg/linked"
    link.symlink_to(patient)
    dataset = load(root)
    assert (dataset.fingerprint, dataset.warnings) == (expected, ())
    (patient / "back").symlink_to(root / "A/neg")
    (patient / "again").symlink_to(patient)
    (root / "A/neg/up").symlink_to(root)
    dataset = load(root)
    assert dataset.fingerprint == expected
    what = "links to folders that are listed already or form a cycle"
    assert dataset.warnings == (f"{root}/A: {what}: 3",)


def test_images_beside_the_classes_are_told(root: Path) -> None:
    shutil.move(root / "A/neg/p000_0.png", root / "A/p000_0.png")
    what = "images outside of class folders, which have no class"
    assert load(root).warnings == (f"{root}/A: {what}: 1",)


def test_splits_below_the_classes_are_refused(root: Path) -> None:
    for name in ("neg", "pos"):
        for split in ("train", "test"):
            (root / "A" / name / split).mkdir()
    with pytest.raises(DataError, match="neg: holds test, train, the splits of one class; put them above"):
        load(root)


def test_images_to_predict_are_counted_too(root: Path) -> None:
    (root / "A/neg/a.nii").write_bytes(b"x")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "A/neg/p000_0_seg.png")
    config = DataConfig(image_size=16, channels=1)
    inputs = load_inputs(str(root), config, ("neg", "pos"), root.parent / "c")
    assert len(inputs) == 40
    assert inputs.notes == (
        f"{root}/A: left out by data.exclude: 1 image {{stem}}_seg.*",
        f"{root}/A: files that are not read as images: 1 .nii",
    )
