"""Images that are given in Python, for a model that stacks two modalities."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.errors import DataError
from src.inference.inputs import read_given
from src.inference.load_model import TrainedModel
from src.utils.config import Config
from tests.images import make_images, write_folder

SETTINGS = {"data": {"modalities": ["A", "P"], "image_size": 24, "channels": 1}}


@pytest.fixture
def trained(folder: Path) -> TrainedModel:
    """A model without a network, and images of other sizes than it takes."""
    for modality, size in (("A", 16), ("P", 32)):
        write_folder(folder / "d", counts={"": 6}, modality=modality, size=size)
    network = cast(Any, None)  # not used to read images
    return TrainedModel("m", network, Config.from_dict(SETTINGS), ("neg", "pos"), 0.5)


def rows(names: list[str]) -> pd.DataFrame:
    paths = {modality: [f"d/{modality}/{name}" for name in names] for modality in ("P", "A")}
    parts = [
        pd.DataFrame({"path": found, "modality": key, "image_id": names}) for key, found in paths.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(patient_id=1)


def test_a_table_of_two_modalities_keeps_the_order_of_the_first(trained: TrainedModel) -> None:
    folder = read_given("d", trained).inputs
    names = [key.removeprefix("A/") for key in folder.records.keys.tolist()][::-1]
    given = read_given(rows(names), trained)
    table = pd.DataFrame(
        {"image": given.inputs.records.keys.tolist(), "sample": given.inputs.records.samples}
    )
    table = given.in_given_order(table)
    assert list(table["image"]) == [f"d/A/{name}" for name in names]
    assert list(table.index) == list(range(6, 12))
    assert list(table["sample"]) == folder.records.samples[::-1]


def test_channels_of_pixels_are_the_modalities_in_order(trained: TrainedModel, folder: Path) -> None:
    first, _ = make_images(6, 16, 0)
    for number, image in enumerate(first):
        Image.fromarray(image.T).save(next((folder / "d/P").rglob(f"*_{number}.png")))
    files = read_given("d", trained).inputs
    order = [int(key.rpartition("_")[2].removesuffix(".png")) for key in files.records.keys.tolist()]
    pixels = np.stack([first, first.transpose(0, 2, 1)], axis=1)[order]
    given = read_given(pixels, trained).inputs
    positions = np.arange(6)
    assert given.records.samples == files.records.samples
    assert given.images.image_shape == files.images.image_shape == (2, 24, 24)
    assert (given.images.read(positions) == files.images.read(positions)).all()


def test_a_list_does_not_name_modalities(trained: TrainedModel) -> None:
    with pytest.raises(DataError, match="stacks A, P, and a list of paths does not name the modality"):
        read_given(["d/A/neg/p000_0.png"], trained)
    with pytest.raises(DataError, match="no column modality"):
        read_given(pd.DataFrame({"path": ["d/A/neg/p000_0.png"]}), trained)
