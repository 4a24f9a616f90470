"""Compare thumbnails of decoded images by normalized cross-correlation.

The correlation of two thumbnails (Lewis, Fast Normalized Cross-Correlation, Vision Interface 1995) is 1 for
images that differ in brightness and contrast only. Here it is the highest over four orientations of one of
them: as it is, mirrored, upside down, and rotated by 180 degrees. Thumbnails hold whole numbers whose float32
products are exact in any order, so the same images are found on every machine.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..utils.console import bar
from .image_array import ImageArray
from .join_modalities import Records

Thumbnails = NDArray[np.int16]
"""``(4, N, 64)``: sums and differences of the four quarters of each thumbnail, folded over its two axes."""

_SIDE = 16
_NORM = 2048  # of a thumbnail: sums of products stay below (2 * _NORM) ** 2 == 2 ** 24, exact in float32
_LUMA = np.array([299, 587, 114], np.float64)  # ITU-R BT.601, as Pillow converts RGB to gray
_BATCH_BYTES = 4_000_000


def make_thumbnails(array: ImageArray, rows: NDArray[np.int64]) -> Thumbnails:
    """Reduce images to gray thumbnails of zero mean and unit norm; one without contrast is all zeros."""
    weights = _overlaps(array.shape[2])
    found = np.empty((4, len(rows), _SIDE * _SIDE // 4), np.int16)
    step = max(1, _BATCH_BYTES // int(np.prod(array.shape[1:])))
    for start in range(0, len(rows), step):
        pixels = array.read(rows[start : start + step])
        gray = pixels[:, 0] * _LUMA.sum() if pixels.shape[1] == 1 else np.tensordot(pixels, _LUMA, (1, 0))
        found[:, start : start + step] = _folded(weights @ gray @ weights.T)
    return found


def correlate(some: Thumbnails, others: Thumbnails) -> Tensor:
    """Return the correlations ``(len(some), len(others))``, the highest of the four orientations."""
    same, left, up, both = torch.bmm(_tensor(some), _tensor(others).transpose(1, 2))
    upright = (left + both).abs_().add_(same).add_(up)
    turned = left.sub_(both).abs_().add_(same).sub_(up)
    return torch.maximum(upright, turned, out=upright).div_((2 * _NORM) ** 2)


def _overlaps(size: int) -> NDArray[np.float64]:
    """Weights ``(16, size)`` of pixels in each row of a thumbnail: whole numbers, for exact area averages."""
    pixels, cells = np.arange(size) * _SIDE, np.arange(_SIDE)[:, None] * size
    overlap = np.minimum(pixels + _SIDE, cells + size) - np.maximum(pixels, cells)
    return np.asarray(overlap.clip(0), np.float64)


def _folded(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalize thumbnails ``(B, 16, 16)`` and split them into parts that a reflection keeps or negates."""
    centered = sums * _SIDE**2 - sums.sum(axis=(1, 2), keepdims=True)
    norms = np.sqrt((centered**2).sum(axis=(1, 2), keepdims=True))
    whole = np.rint(np.divide(centered * _NORM, norms, out=np.zeros_like(centered), where=norms > 0))
    half = _SIDE // 2
    top, bottom = whole[:, :half], whole[:, : half - 1 : -1]
    parts = []
    for rows in (top + bottom, top - bottom):
        near, far = rows[..., :half], rows[..., : half - 1 : -1]
        parts += [near + far, near - far]
    return np.stack(parts).reshape(4, len(sums), -1)


def _tensor(thumbnails: Thumbnails) -> Tensor:
    return torch.from_numpy(thumbnails).float()


_BLOCK = 2048
_SAMPLE = 1000
"""Training images and val or test images whose pairs say how alike different patients are."""
_BINS = 10_000


@dataclass
class Comparison:
    """Similarity of training images to val and test images.

    Attributes:
        held_out: float32 ``(H,)``, highest correlation of each val or test image with a training image.
        partners: int64 ``(H,)``, position of that training image.
        train: float32 ``(T,)``, highest correlation of each training image with a val or test image.
        pairs: int64 ``(_BINS,)``, histogram over [0, 1] of the correlations of random pairs of patients.
        numbers: int64 ``(2,)``, how many training images were compared, and how many images are blank.
    """

    held_out: NDArray[np.float32]
    partners: NDArray[np.int64]
    train: NDArray[np.float32]
    pairs: NDArray[np.int64]
    numbers: NDArray[np.int64]

    @classmethod
    def empty(cls, held_out: int, train: int) -> "Comparison":
        """Return the state before the first comparison."""
        zeros = (np.zeros(held_out, np.int64), np.zeros(train, np.float32), np.zeros(_BINS, np.int64))
        return cls(np.zeros(held_out, np.float32), *zeros, np.zeros(2, np.int64))

    @property
    def compared(self) -> int:
        """Number of training images that were compared."""
        return int(self.numbers[0])

    @property
    def is_complete(self) -> bool:
        """Whether all of them were."""
        return self.compared == len(self.train)

    def add(self, alike: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
        """Add the correlations of some val and test images (rows) with some training images (columns)."""
        best, where = alike.max(axis=1), alike.argmax(axis=1)
        is_better = best > self.held_out[rows]
        self.held_out[rows[is_better]] = best[is_better]
        self.partners[rows[is_better]] = columns[where[is_better]]
        self.train[columns] = np.maximum(self.train[columns], alike.max(axis=0))

    def share_of_pairs(self, threshold: float) -> float:
        """Share of random pairs of different patients whose correlation is above the threshold."""
        above = self.pairs[int(np.ceil(round(threshold * _BINS, 6))) :].sum()
        return float(above / max(1, self.pairs.sum()))


def compare(state: Comparison, records: Records, arrays: Sequence[ImageArray], *, deadline: float) -> None:
    """Compare training images in random order with all val and test images, until the deadline.

    Args:
        state: Results so far; updated in place.
        records: All samples.
        arrays: The decoded images of each modality.
        deadline: Time on the clock of `time.monotonic`, checked after each block of training images.
    """
    is_train = records.splits == "train"
    train, held_out = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    random = np.random.default_rng(0)
    # Shuffled, so that what is compared within the time, and the first block, are random samples.
    train, held_out = random.permutation(train), random.permutation(held_out)
    ranks = np.cumsum(is_train) - 1, np.cumsum(~is_train) - 1
    theirs = _thumbnails(records, arrays, held_out)
    state.numbers[:], state.pairs[:] = (0, _count_blank(theirs)), 0
    with bar("Comparing images", len(train)) as advance:
        for block in _blocks(len(train)):
            mine = _thumbnails(records, arrays, train[block])
            columns = ranks[0][train[block]]
            state.numbers += len(columns), _count_blank(mine)
            for other in _blocks(len(held_out)):
                alike = _correlate(theirs, other, mine, slice(None))
                state.add(alike, ranks[1][held_out[other]], columns)
                if block.start == other.start == 0:
                    sample = held_out[other][:_SAMPLE], train[block][:_SAMPLE]
                    state.pairs += _histogram(alike, *(records.patients[chosen] for chosen in sample))
            for _ in columns:
                advance("")
            if time.monotonic() > deadline:
                return


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]


def _thumbnails(
    records: Records, arrays: Sequence[ImageArray], chosen: NDArray[np.int64]
) -> list[Thumbnails]:
    rows = records.rows[chosen]
    return [make_thumbnails(array, rows[:, column]) for column, array in enumerate(arrays)]


def _correlate(
    some: list[Thumbnails], block: slice, others: list[Thumbnails], other: slice
) -> NDArray[np.float32]:
    """Return the correlation of each pair of images from two blocks: the maximum over the modalities."""
    found = [correlate(one[:, block], two[:, other]) for one, two in zip(some, others, strict=True)]
    highest: NDArray[np.float32] = np.maximum.reduce([of_one.numpy() for of_one in found])
    return highest


def _count_blank(thumbnails: list[Thumbnails]) -> int:
    """Count the images without any contrast, which correlate with nothing."""
    return int(np.all([(of_one == 0).all(axis=(0, 2)) for of_one in thumbnails], axis=0).sum())


def _histogram(
    alike: NDArray[np.float32], some: NDArray[np.object_], others: NDArray[np.object_]
) -> NDArray[np.int64]:
    """Histogram of the correlations of the first images, of pairs of different patients."""
    differ = (some[:, None] != others) | (some[:, None] == None)  # noqa: E711 -- unknown: its own patient
    values = alike[: len(some), : len(others)][differ.astype(bool)]
    return np.histogram(values.clip(0, 1), _BINS, (0, 1))[0].astype(np.int64)


def find_components(records: Records, arrays: Sequence[ImageArray], threshold: float) -> NDArray[np.int64]:
    """Return a group number for each image; images alike, directly or through others, have the same one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, blocks = len(records), _blocks(len(records))
    thumbnails = _thumbnails(records, arrays, np.arange(count))
    component: NDArray[np.int64] = np.arange(count)
    with bar("Comparing images", len(blocks)) as advance:
        for number, block in enumerate(blocks):
            for other in blocks[number:]:
                one, two = np.nonzero(_correlate(thumbnails, block, thumbnails, other) > threshold)
                ends = component[block][one], component[other][two]
                graph = coo_array((np.ones(len(one), bool), ends), shape=(count, count))
                component = connected_components(graph, directed=False)[1][component]
            advance("")
    return component
