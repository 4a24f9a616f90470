"""Copies of an image in another split: found by thumbnails, reported, dropped, refused or grouped."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from src.data import leaks
from src.data.dataset import Dataset, load_dataset
from src.errors import DataError
from src.utils.config import DataConfig

SIZE = 64
Copy = Callable[[Image.Image], Image.Image]


def load(root: Path, **settings: object) -> Dataset:
    return load_dataset(DataConfig.model_validate({"root_dir": str(root), **settings}), root.parent / "c")


def scan(number: int) -> Image.Image:
    """An image with structure at several scales, as scans have it."""
    random = np.random.default_rng(number)
    layers = [
        Image.fromarray(random.normal(0, 1, (side, side)).astype(np.float32)).resize((SIZE, SIZE), 3)
        for side in (4, 8, 32)
    ]
    mixed = sum(np.asarray(layer) * weight for layer, weight in zip(layers, (30, 20, 5), strict=True))
    return Image.fromarray(np.clip(120 + mixed, 20, 230).astype(np.uint8))


def through_jpeg(image: Image.Image) -> Image.Image:
    memory = io.BytesIO()
    image.save(memory, "JPEG", quality=50)
    return Image.open(io.BytesIO(memory.getvalue()))


def shifted(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.roll(np.asarray(image), 1, axis=1))


def in_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


COPIES: dict[str, Copy] = {
    "jpeg": through_jpeg,
    "shift of a pixel": shifted,
    "gray as RGB": lambda image: image.convert("RGB"),
    "16 bits": in_16_bits,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "rotated by 180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "crop of a pixel": lambda image: image.crop((1, 1, SIZE - 1, SIZE - 1)),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "half the size": lambda image: image.resize((SIZE // 2, SIZE // 2)),
}


def write(root: Path, split: str, numbers: range, copy: Copy | None = None) -> None:
    for number in numbers:
        path = root / "A" / split / ("neg", "pos")[number % 2] / f"i{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (copy(scan(number)) if copy else scan(number)).save(path)


@pytest.fixture
def root(folder: Path) -> Path:
    write(folder / "d", "train", range(12))
    write(folder / "d", "val", range(100, 106))
    return folder / "d"


def pairs(root: Path) -> list[dict[str, str]]:
    (path,) = (root.parent / "c/near_duplicates").glob("*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_found(root: Path, way: str) -> None:
    write(root, "test", range(3, 5), COPIES[way])
    write(root, "test", range(200, 202))
    dataset = load(root)
    assert dataset.counts["near_duplicates"] + dataset.counts["leaked_images"] == 2
    if not dataset.counts["leaked_images"]:
        found = {(row["image"], row["training_image"]) for row in pairs(root)}
        assert found == {
            (f"A/test/{label}/i{i}.png", f"A/train/{label}/i{i}.png") for i, label in ((3, "pos"), (4, "neg"))
        }


def test_reported_dropped_or_refused(root: Path) -> None:
    before = load(root)
    assert (before.warnings, before.counts["near_duplicates"]) == ((), 0)
    write(root, "test", range(4), through_jpeg)
    write(root, "test", range(200, 202))
    reported = load(root)
    assert len(reported.splits["train"]) == 12
    assert reported.warnings[0].startswith(
        "near-duplicates: 0 of 6 val images and 4 of 6 test images look like a training image (thumbnail "
        "correlation above 0.97, data.near_duplicate_threshold); of random pairs of different patients "
    )
    dropped = load(root, on_near_duplicate="drop")
    assert len(dropped.splits["train"]) == 8
    assert dropped.warnings[0].endswith("dropped from train: 4; val and test stay")
    assert dropped.fingerprint != reported.fingerprint
    assert dropped.splits["test"].hashes == reported.splits["test"].hashes
    with pytest.raises(DataError, match=r"4 of 6 test images.*choose data\.on_near_duplicate=drop") as error:
        load(root, on_near_duplicate="error")
    assert str(root.parent) not in error.value.public
    assert load(root, near_duplicate_threshold=0.9999).counts["near_duplicates"] == 0
    with pytest.raises(DataError, match="the data define their own"):
        load(root, on_near_duplicate="group")


def test_the_comparison_is_cached_for_every_threshold(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "test", range(4), through_jpeg)
    first = load(root)
    monkeypatch.setattr(leaks, "compare", lambda *_, **__: pytest.fail("compared again"))
    assert load(root).warnings == first.warnings
    assert load(root, near_duplicate_threshold=0.5).counts["near_duplicates"] >= 4
    (path,) = (root.parent / "c/near_duplicates").glob("*.npz")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(pytest.fail.Exception, match="compared again"):
        load(root)


def test_what_was_not_compared_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "test", range(4), through_jpeg)
    monkeypatch.setattr(leaks, "SECONDS", -1.0)
    monkeypatch.setattr("src.data.image_similarity._BLOCK", 5)
    said = "near-duplicates were searched in 5 of 12 training images, chosen at random, within -1 s"
    for _ in range(2):  # once only: a start is not delayed again and again
        assert said in " ".join(load(root).warnings)
    assert load(root, on_near_duplicate="drop").counts["near_duplicates"] == 4
    assert "looked for" not in " ".join(load(root).warnings)


def test_images_without_contrast_are_said_not_to_be_compared(root: Path) -> None:
    for number, split in enumerate(("train", "val")):
        Image.fromarray(np.full((SIZE, SIZE), 40 + number, np.uint8)).save(root / f"A/{split}/neg/blank.png")
    (note,) = load(root).warnings
    assert note == "2 images without any contrast cannot be compared"


def test_images_that_are_all_alike_are_no_copies(folder: Path) -> None:
    """Aligned slices: one anatomy, and a little that differs."""
    base = np.asarray(scan(0)).astype(np.float64)
    for number in range(40):
        split = "train" if number < 20 else "val"
        path = folder / "d/A" / split / ("neg", "pos")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = base + np.random.default_rng(number).normal(0, 8, base.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    (note,) = load(folder / "d").warnings
    assert "of random pairs of different patients 1e+02 % do" in note
    assert "an image looks like 20 training images on average, so most of these are probably" in note


def places(dataset: Dataset, images: list[NDArray[np.uint8]]) -> list[set[str]]:
    """The splits of each image's copies."""
    found: list[set[str]] = [set() for _ in images]
    for name, split in dataset.splits.items():
        for shown in dataset.batch(name, np.arange(len(split))).numpy()[:, 0]:
            scores = [np.corrcoef(shown.ravel(), image.ravel())[0, 1] for image in images]
            if max(scores) > 0.97:
                found[int(np.argmax(scores))].add(name)
    return found


def test_our_split_groups_them_only_when_asked(folder: Path) -> None:
    root = folder / "d"
    write(root, "", range(24))
    for number in range(0, 24, 3):
        scan(number).save(root / "A" / ("neg", "pos")[number % 2] / f"copy{number}.jpg", quality=50)
    images = [np.asarray(scan(number)) for number in range(24)]
    assert any(len(where) > 1 for where in places(load(root), images))
    dataset = load(root, on_near_duplicate="group")
    assert all(len(where) == 1 for where in places(dataset, images))
    assert dataset.counts["near_duplicates"] == 0
    assert (
        "16 of 32 images are near-duplicates of others and form 8 groups, the largest of 2"
        in (dataset.warnings[0])
    )
    folds = [load(root, on_near_duplicate="group", folds=3, fold=fold) for fold in range(3)]
    assert all(fold.counts["near_duplicates"] == 0 for fold in folds)
