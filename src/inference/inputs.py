"""Images that a caller gives in Python: paths, a table, or pixels in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pandas import DataFrame, Index
from torch import Tensor

from ..data.folders import NamePatterns
from ..data.image_table import table_in_memory
from ..data.join_modalities import Records, text_column
from ..data.listing import UNKNOWN
from ..data.manifest import check_filled, list_unlabeled_table, needed_unlabeled
from ..data.pixels import DecodedImage, ImageFormat, render
from ..data.problems import Problems
from ..data.sources import Inputs, load_inputs, load_listings
from ..errors import DataError
from ..utils.io import sha256
from .load_model import TrainedModel

Given: TypeAlias = str | Path | Sequence[str | Path] | DataFrame | NDArray[np.uint8]
"""A path as of ``--input``, a list of paths of images, a table with a column ``path``, or pixels."""

_TABLE = "the table"  # its name in messages


@dataclass(frozen=True, eq=False)
class PixelImages:
    """Images in memory, resized as files are when they are read.

    Attributes:
        pixels: uint8 ``(N, C, H, W)``.
        modalities: Number of modalities, which share the channels equally.
        format: The format of the network's input.
    """

    pixels: NDArray[np.uint8]
    modalities: int
    format: ImageFormat

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, S, S)`` of the network's input."""
        return self.modalities * self.format.channels, self.format.size, self.format.size

    def key(self, position: int) -> str:
        """Return the name of a sample in messages."""
        return f"image {position}"

    def decoded(self, position: int) -> list[DecodedImage]:
        """Return one image of each modality, as a reader of files returns it."""
        parts = np.split(self.pixels[position], self.modalities)
        return [DecodedImage(part[0] if len(part) == 1 else part.transpose(1, 2, 0)) for part in parts]

    def read(self, positions: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Resize and return images."""
        images = torch.empty(len(positions), *self.image_shape, dtype=torch.uint8) if out is None else out
        for image, position in zip(images.numpy(), positions.tolist(), strict=True):
            image[:] = np.concatenate([render(part, self.format) for part in self.decoded(position)])
        return images


@dataclass(frozen=True, eq=False)
class GivenImages:
    """Images that a caller gave, ready for a network.

    Attributes:
        inputs: The images, in the order in which a command takes them.
        positions: Position of each in what was given; None for the order of a command.
        index: Index of the caller's table by position, None if there is none.
    """

    inputs: Inputs
    positions: NDArray[np.int64] | None = None
    index: "Index | None" = None

    def in_given_order(self, table: DataFrame) -> DataFrame:
        """Return a table of the images in the caller's order, with the index of the caller's table."""
        if self.positions is None:
            return table
        table = table.iloc[np.argsort(self.positions)]
        if self.index is None:
            return table.reset_index(drop=True)
        return table.set_axis(self.index[np.sort(self.positions)], axis=0)


def read_given(images: Given, trained: TrainedModel) -> GivenImages:
    """Return images that a caller gave.

    Raises:
        DataError: They are not of a supported kind, missing, or none can be read.
    """
    config = trained.config
    if isinstance(images, str | Path):
        return GivenImages(load_inputs(str(images), config.data, trained.classes, config.cache_dir))
    if isinstance(images, np.ndarray):
        return GivenImages(_of_pixels(images, trained))
    if isinstance(images, DataFrame):
        return _of_table(images, trained, images.index)
    if isinstance(images, Sequence) and all(isinstance(image, str | Path) for image in images):
        if len(config.data.modalities) > 1:
            raise DataError(
                f"the model stacks {', '.join(config.data.modalities)}, and a list of paths does not "
                "name the modality of each; give a DataFrame with the columns path, modality and patient_id "
                "or image_id"
            )
        return _of_table(DataFrame({"path": [str(image) for image in images]}), trained, None)
    raise DataError(
        f"images: a {type(images).__name__} is given; expected a path, a list of paths, a DataFrame with a "
        "column path, or a uint8 array (N, C, H, W)"
    )


def _of_table(table: DataFrame, trained: TrainedModel, index: "Index | None") -> GivenImages:
    config, modalities = trained.config, trained.config.data.modalities
    patterns = NamePatterns(config.data.patient_regex, config.data.image_id_regex, must_match=False)
    problems = Problems(_TABLE)
    rows = table_in_memory(_TABLE, table, config.data, problems, needed_unlabeled(modalities))
    check_filled(rows, "path", problems)
    problems.check()
    listings = [
        list_unlabeled_table(rows, modality, config.data, trained.classes, patterns, root=Path())
        for modality in modalities
    ]
    inputs = load_listings(listings, config.data, config.cache_dir)
    first = [line for line in rows.lines if line.cells.get("modality", modalities[0]) == modalities[0]]
    # A listing is sorted by path; the sort is stable, so that repeated paths keep their order.
    numbers = [line.number for line in sorted(first, key=lambda line: line.cells["path"])]
    positions = np.array(numbers)[inputs.records.rows[:, 0]] - 1
    return GivenImages(inputs, positions, index)


def _of_pixels(pixels: NDArray[np.uint8], trained: TrainedModel) -> Inputs:
    data, names = trained.config.data, trained.config.data.modalities
    allowed = [len(names), 3 * len(names)]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in allowed or 0 in pixels.shape:
        raise DataError(
            f"images: an array {pixels.shape} of {pixels.dtype} is given; expected uint8 (N, C, H, W) with "
            f"{' or '.join(map(str, allowed))} channels, the window already applied"
        )
    assert data.channels != "auto"
    assert data.image_size != "auto"
    images = PixelImages(
        pixels, len(names), ImageFormat(data.image_size, data.channels, data.window, data.fit)
    )
    count = len(pixels)
    shas = [[sha256(part.content) for part in images.decoded(position)] for position in range(count)]
    records = Records(
        np.arange(count)[:, None],
        np.full(count, UNKNOWN, dtype=np.int64),
        text_column([None] * count),
        np.array(shas, dtype=object),
        text_column([str(position) for position in range(count)]),
        text_column([""] * count),
        text_column([""] * count),
    )
    return Inputs(records, images, (), (), "")
