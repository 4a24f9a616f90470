"""Images of another kind than those of the training are noticed, and images of the same source are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.data.image_profile import differences, read_profiles
from src.data.sources import load_inputs
from src.utils.config import Config, DataConfig
from tests.images import make_images

Pixels = NDArray[np.uint8]


def said_of(folder: Path, dataset: Dataset, config: DataConfig, cache: Path) -> list[str]:
    """What is said of the images of a folder after a training on a dataset."""
    resolved = {"image_size": dataset.size, "channels": dataset.channels_each, "window": dataset.window}
    inputs = load_inputs(str(folder), config.model_copy(update=resolved), dataset.classes, cache)
    return differences(inputs.images, dataset.profiles, config.modalities)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, DataConfig, Path]:
    cache = tmp_path_factory.mktemp("cache")
    config = Config.from_dict({"data": {"root_dir": "demo", "modalities": ["A"]}}).data
    return load_dataset(config, cache), config, cache


@pytest.mark.slow
def test_nothing_is_said_of_other_images_of_the_demo(demo: tuple[Dataset, DataConfig, Path]) -> None:
    dataset, config, _ = demo
    for split in ("val", "test"):
        assert differences(dataset.images(split), dataset.profiles, config.modalities) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pixels: pixels, []),
        (lambda pixels: 255 - pixels, ["images darker or brighter than the training images"]),
        (lambda pixels: pixels.astype(np.uint16) * 257, ["images of more than 8 bits, unlike all training"]),
        (lambda pixels: np.repeat(np.repeat(pixels, 3, 0), 3, 1), ["images smaller than half or larger"]),
        (
            lambda pixels: np.stack([pixels] * 3, axis=2),
            ["images in color, unlike all training images"],
        ),
    ],
    ids=["same", "inverted", "x257", "large", "color"],
)
def test_each_other_kind_is_one_line(
    demo: tuple[Dataset, DataConfig, Path],
    tmp_path: Path,
    change: Callable[[Pixels], Pixels],
    said: list[str],
) -> None:
    dataset, config, cache = demo
    for path in sorted(dataset.root.glob("A/*/p000*.png")):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(tmp_path / path.name)
    count = len(list(tmp_path.iterdir()))
    found = said_of(tmp_path, dataset, config, cache)
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said
    assert all(f": {count} of {count}, the first is p0001_1.png" in line for line in found)


def test_values_outside_of_the_window_of_the_training_are_noticed(tmp_path: Path) -> None:
    """16-bit files, whose window is of percentiles: scaled ones are white."""
    images, labels = make_images(120, 16, 1)
    for number, (image, label) in enumerate(zip(images.astype(np.uint16), labels, strict=True)):
        for root, factor in (("d/A", 1), ("scaled", 257)):
            path = tmp_path / root / f"{label}" / f"p{number}_0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image * factor).save(path)
    config = Config.from_dict({"data": {"root_dir": str(tmp_path / "d"), "modalities": ["A"]}}).data
    dataset = load_dataset(config, tmp_path / "cache")
    assert said_of(tmp_path / "d", dataset, config, tmp_path / "cache") == []
    (line,) = said_of(tmp_path / "scaled", dataset, config, tmp_path / "cache")
    assert line.startswith("images darker or brighter than the training images: 120 of 120")


def test_a_model_without_a_record_says_nothing_and_a_damaged_one_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert read_profiles(None) == ()
    assert capsys.readouterr().err == ""
    assert read_profiles([{"images": "many"}]) == ()
    assert "data_profile) is damaged" in capsys.readouterr().err
