"""What the kind of a file tells of its class, and images in color among gray ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import load_dataset
from src.data.shortcut_checks import cramers_v
from src.utils.config import DataConfig

CLASSES = ("neg", "pos")
Change = Callable[[Image.Image], Image.Image]


def write(root: Path, number: int, change: Change, ending: str = "png") -> None:
    """Write an image of noise; each image has pixels of its own."""
    pixels = np.random.default_rng(number).integers(0, 255, (12, 12)).astype(np.uint8)
    path = root / "A" / CLASSES[number % 2] / f"{number:02d}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    change(Image.fromarray(pixels)).save(path)


def notes(root: Path, **settings: object) -> list[str]:
    config = DataConfig.model_validate({"root_dir": str(root), **settings})
    return list(load_dataset(config, root.parent / "cache").warnings)


def same(image: Image.Image) -> Image.Image:
    return image


def in_color(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


def large(image: Image.Image) -> Image.Image:
    return image.resize((20, 24))


@pytest.mark.parametrize(
    ("change", "ending", "told"),
    [
        (in_color, "png", "color (Cramér's V 1.00; neg: 12 gray; pos: 12 color)"),
        (deep, "png", "bits (Cramér's V 1.00; neg: 12 of 8 bits; pos: 12 of 16 bits)"),
        (same, "bmp", "format (Cramér's V 1.00; neg: 12 PNG; pos: 12 BMP)"),
        (large, "png", "image size (Cramér's V 1.00; neg: 12 of 12 x 12; pos: 12 of 20 x 24)"),
    ],
    ids=["color", "bits", "format", "size"],
)
def test_a_kind_of_file_that_tells_the_class_is_told(
    folder: Path, change: Change, ending: str, told: str
) -> None:
    for number in range(24):
        write(folder / "d", number, *((change, ending) if number % 2 else (same, "png")))
    for _ in range(2):  # once decoded, once from the index
        (note,) = [note for note in notes(folder / "d") if "kind of file" in note]
        assert note.startswith("A: the kind of file reveals the class")
        assert f"instead of the images: {told}. Export" in note


def test_what_both_classes_have_tells_nothing(folder: Path) -> None:
    kinds: list[tuple[Change, str]] = [(same, "png"), (in_color, "png"), (deep, "tif"), (large, "bmp")]
    for number in range(32):
        write(folder / "d", number, *kinds[number // 2 % 4])
    assert not [note for note in notes(folder / "d") if "kind of file" in note]


def test_the_format_is_that_of_the_content(folder: Path) -> None:
    for number in range(24):
        write(folder / "d", number, same, "jpg" if number % 2 else "png")
        if number % 2:
            path = folder / f"d/A/pos/{number:02d}"
            path.with_suffix(".jpg").rename(path.with_suffix(".png"))
    assert "format (Cramér's V 1.00; neg: 12 PNG; pos: 12 JPEG)" in notes(folder / "d")[0]


def test_sizes_that_grow_with_the_class_are_told(folder: Path) -> None:
    """Each image has a size of its own, as crops around a lesion have."""
    for number in range(40):
        side = 20 + number + 30 * (number % 2)
        write(folder / "d", number, lambda image, side=side: image.resize((side, side)))  # type: ignore[misc]
    (note,) = notes(folder / "d")
    assert "image size (Cramér's V 0.7" in note
    assert "pixels a side" in note


@pytest.mark.parametrize(
    ("counts", "strength"),
    [
        ([[12, 0], [0, 12]], 1),
        ([[900, 0], [0, 9]], 1),
        ([[50, 50], [50, 50]], 0),
        ([[75, 25], [25, 75]], 0.496),
        ([[90, 10], [10, 90]], 0.799),
        ([[1, 0], [0, 1]] * 12, 0),  # a value for each image tells nothing
        ([[5, 5]], 0),
        ([[7, 0], [9, 0]], 0),
        ([[10, 0, 0], [0, 10, 10]], 0.982),  # one class of three
    ],
)
def test_cramers_v(counts: list[list[int]], strength: float) -> None:
    assert cramers_v(np.array(counts)) == pytest.approx(strength, abs=5e-4)


def test_captures_in_a_gray_set_are_named(folder: Path) -> None:
    for number in range(24):
        write(folder / "d", number, in_color if number == 7 else same)
    (note,) = notes(folder / "d")
    assert note.startswith(
        "A: 1 of 24 images is stored in color, so that all get three channels: A/pos/07.png; leave such "
    )
    assert notes(folder / "d", channels=1) == []
    assert notes(folder / "d", exclude=("07.*",)) == [
        "%s: left out by data.exclude: 1 image 07.*" % (folder / "d/A")
    ]
    for number in range(12):
        write(folder / "d", number, in_color)
    assert not [note for note in notes(folder / "d") if "three channels" in note]  # half
    (folder / "d/A/neg/00.png").unlink()
    (note,) = [note for note in notes(folder / "d") if "three channels" in note]
    assert "11 of 23 images are stored in color" in note
    assert "A/neg/10.png, A/pos/01.png, A/pos/03.png" not in note
    assert "A/neg/02.png, A/neg/04.png, A/neg/06.png, A/neg/08.png, A/neg/10.png and 6 more; leave" in note
