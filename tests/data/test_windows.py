"""A window that shows nothing of an image, and the one that is chosen where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.data.sources import load_inputs
from src.errors import DataError
from src.utils.config import DataConfig

CLASSES = ("neg", "pos")


@pytest.fixture
def root(folder: Path) -> Path:
    """Two classes of 12 images of 16 bits, with values from 1000 to 3999; one is of one gray by itself."""
    for number in range(24):
        pixels = np.random.default_rng(number).integers(1000, 4000, (8, 8))
        pixels[0, :2] = 1000, 3999
        path = folder / "d/A" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (number != 5) + number).astype(np.uint16)).save(path)
    return folder / "d"


def load(root: Path, window: tuple[float, float] | None) -> Dataset:
    config = DataConfig.model_validate({"root_dir": str(root), "window": window})
    return load_dataset(config, root.parent / "cache")


def notes(root: Path, window: tuple[float, float] | None) -> list[str]:
    return [note for note in load(root, window).warnings if "one gray" in note]


def test_a_window_that_shows_nothing_at_all_is_refused(root: Path) -> None:
    (root / "A/pos/5.png").unlink()
    message = (
        r"23 of 23 images hold only values outside of data\.window=\[-160, 240\].*hold 1000 to 4022; choose"
    )
    with pytest.raises(DataError, match=message):
        load(root, (-160.0, 240.0))
    with pytest.raises(DataError, match="23 of 23"):
        load(root, (5000.0, 6000.0))


def test_a_window_that_shows_nothing_of_some_images_is_warned_of(root: Path) -> None:
    (note,) = notes(root, (4020.0, 5000.0))
    assert "21 of 24 images hold only values outside of data.window=[4020, 5000]" in note
    assert "they hold 1000 to 4019" not in note  # brightest of those that are blank: 3999 + 21
    assert "they hold 1000 to 4020" in note
    assert notes(root, (1000.0, 4000.0)) == []
    assert notes(root, None) == []


def test_it_is_warned_of_where_a_model_is_used(root: Path) -> None:
    config = DataConfig(window=(-160.0, 240.0), modalities=("A",), image_size=8, channels=1)
    inputs = load_inputs(str(root), config, CLASSES, root.parent / "cache")
    assert len(inputs) == 24
    assert [note for note in inputs.notes if "23 of 24 images hold only values outside" in note]
    config = config.model_copy(update={"window": (0.0, 4095.0)})
    assert not load_inputs(str(root), config, CLASSES, root.parent / "cache").notes


def test_the_window_is_that_of_the_training_images_and_found_again(root: Path) -> None:
    (root / "A/pos/5.png").unlink()
    first = load(root, None)
    values = [np.asarray(Image.open(path)) for path in sorted((root / "A").rglob("*.png"))]
    assert first.window is not None
    assert 1000 <= first.window[0] < 1060
    assert 3900 < first.window[1] <= max(image.max() for image in values)
    (kept,) = (root.parent / "cache/windows").iterdir()
    assert json.loads(kept.read_text()) == list(first.window)
    kept.write_text("[2000, 3000]")  # it is read, not computed, the second time
    assert load(root, None).window == (2000.0, 3000.0)
    kept.write_text("half a fi")
    assert load(root, None).window == first.window
    # Another split has other training images, and so a window of its own.
    config = DataConfig.model_validate({"root_dir": str(root), "split_seed": 1})
    load_dataset(config, root.parent / "cache")
    assert len(list((root.parent / "cache/windows").iterdir())) == 2


def test_images_of_one_gray_leave_the_full_range(folder: Path) -> None:
    for number in range(24):
        path = folder / "d/A" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8 + number), 700, np.uint16)).save(path)
    assert load(folder / "d", None).window == (0.0, 65535.0)
