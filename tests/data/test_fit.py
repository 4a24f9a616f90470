"""How an image becomes a square: padded with black, stretched, or as runs of earlier versions had it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.data.pixels import DecodedImage, ImageFormat, render, resize, to_8_bits
from src.utils.config import Config
from tests.images import pixels_of, write_folder

RANDOM = np.random.default_rng(0)
CT = RANDOM.integers(-1000, 2000, (37, 61)).astype(np.int16)
PICTURES = {
    "gray": DecodedImage(RANDOM.integers(0, 256, (37, 61), dtype=np.uint8)),
    "CT": DecodedImage(CT, full=(-1024.0, 3071.0)),
    "inverted": DecodedImage(CT, full=(-1024.0, 3071.0), inverted=True),
}
WINDOW = (-160.0, 240.0)


def exact(picture: DecodedImage, height: int, width: int) -> NDArray[np.float64]:
    """The image at another size, by another library and never rounded."""
    values = picture.values.astype(np.float64)
    if picture.full is not None:
        values = ((values - WINDOW[0]) * 255 / (WINDOW[1] - WINDOW[0])).clip(0, 255)
        values = 255 - values if picture.inverted else values
    tensor = torch.from_numpy(values)[None, None]
    done = torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
    return np.asarray(done[0, 0].numpy())


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("size", [24, 80])
def test_the_image_is_rounded_once(name: str, fit: str, size: int) -> None:
    picture = PICTURES[name]
    height = round(37 * size / 61) if fit == "pad" else size
    top = (size - height) // 2
    seen = render(picture, ImageFormat(size, 3, WINDOW, fit))
    assert seen.shape == (3, size, size)
    assert (seen[0] == seen[2]).all()
    reference = exact(picture, height, size)
    assert np.abs(seen[0, top : top + height] - reference).max() < 0.501
    assert (np.delete(seen, np.s_[top : top + height], axis=1) == 0).all()  # black, whatever is inverted
    rounded_twice = resize(to_8_bits(picture, WINDOW), size, 1)[0]
    assert fit == "pad" or np.abs(rounded_twice - reference).max() > 0.501


def test_a_high_image_is_padded_left_and_right() -> None:
    seen = render(DecodedImage(np.full((40, 10), 200, np.uint8)), ImageFormat(20, 1, None, "pad"))
    assert (seen[0, :, 7:12] == 200).all()
    assert seen.sum() == 20 * 5 * 200


def test_colors_become_gray_and_stay_colors() -> None:
    picture = DecodedImage(RANDOM.integers(0, 256, (20, 40, 3), dtype=np.uint8))
    colors, gray = (render(picture, ImageFormat(40, channels, None, "pad")) for channels in (3, 1))
    assert (colors[:, 10:30] == picture.values.transpose(2, 0, 1)).all()
    assert np.abs(gray[0, 10:30] - picture.values @ [0.299, 0.587, 0.114]).max() < 0.501


def test_what_needs_no_fitting_is_the_same_in_all() -> None:
    square = DecodedImage(CT[:32, :32], full=(-1024.0, 3071.0), inverted=True)
    fits = [render(square, ImageFormat(32, 3, WINDOW, fit)).tobytes() for fit in ("pad", "stretch", "legacy")]
    assert len(set(fits)) == 1


def write_wide(folder: Path, side: int = 24) -> Path:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    for number, file in enumerate(sorted((root / "A").rglob("pos/*.png"))):
        wide = RANDOM.integers(0, 256, (12, side), dtype=np.uint8)
        wide[0, 0] = number
        Image.fromarray(wide).save(file)
    return root


def load(root: Path, cache: Path, fit: str) -> Dataset:
    config = Config().updated({"data.root_dir": str(root), "data.image_size": 16, "data.fit": fit})
    return load_dataset(config.data, cache)


def test_the_cache_tells_the_fits_apart(folder: Path) -> None:
    root = write_wide(folder)
    shown = {fit: pixels_of(load(root, folder / "c", fit).arrays[0]) for fit in ("pad", "stretch", "legacy")}
    assert len({pixels.tobytes() for pixels in shown.values()}) == 3
    for fit, pixels in shown.items():
        assert np.array_equal(pixels, pixels_of(load(root, folder / "other" / fit, fit).arrays[0]))


def test_a_shape_that_tells_the_class_is_pointed_out(folder: Path) -> None:
    dataset = load(write_wide(folder), folder / "c", "pad")
    assert {name: str(aspect) for name, aspect in dataset.aspects.items()} == {"neg": "1.00", "pos": "2.00"}
    (note,) = [note for note in dataset.warnings if "width / height" in note]
    assert "neg 1.00, pos 2.00" in note
    root = write_folder(folder / "square", counts={"train": 8, "val": 8})
    assert not [note for note in load(root, folder / "c", "pad").warnings if "width / height" in note]


def test_a_stored_config_shows_images_as_the_build_that_wrote_it(folder: Path) -> None:
    values = Config().updated({"data.root_dir": str(write_wide(folder)), "data.image_size": 16}).to_dict()
    del values["data"]["fit"]
    stored = Config.from_dict(values)
    assert stored.data.fit == "legacy"
    assert Config.from_dict({"data": {"root_dir": "d"}}).data.fit == "pad"  # written by hand
    arrays = pixels_of(load_dataset(stored.data, folder / "c").arrays[0])
    files = sorted((folder / "d/A").rglob("*.png"))
    expected = {resize(np.asarray(Image.open(file)), 16, 1).tobytes() for file in files}
    assert {image.tobytes() for image in arrays} == expected
