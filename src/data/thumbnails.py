"""Thumbnails of decoded images, and how alike they are by normalized cross-correlation.

The correlation of two thumbnails (Lewis, Fast Normalized Cross-Correlation, Vision Interface 1995) is 1 for
images that differ in brightness and contrast only. Here it is the highest over four orientations of one of
them: as it is, mirrored, upside down, and rotated by 180 degrees. Thumbnails hold whole numbers whose float32
products are exact in any order, so the same images are found on every machine.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .image_array import ImageArray

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


def are_blank(thumbnails: Thumbnails) -> NDArray[np.bool_]:
    """Whether each image has no contrast at all, so that it correlates with nothing."""
    return np.asarray((thumbnails == 0).all(axis=(0, 2)))


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
