"""The window of a run whose images name none: percentiles of a fixed sample of its training images."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..utils.io import atomic_write_text, sha256_of_lines
from ..utils.progress import track
from .images import Picture, Range
from .samples import Listing, Sample
from .workers import Workers

IMAGES = 500
PERCENTILES = (0.5, 99.5)
_PIXELS = 10_000  # of an image at most, evenly spaced


def training_window(
    listings: Sequence[Listing], rows: NDArray[np.int64], hashes: Sequence[str], cache_dir: Path
) -> Range | None:
    """Return percentiles of the values of training images of more than 8 bits.

    Args:
        listings: The images, one listing per modality.
        rows: ``(N, M)``, the position of each training sample in the listing of each modality, in an order
            that does not depend on names.
        hashes: Names each training sample by its pixels, N.
        cache_dir: Where the result is kept, so that the sample is decoded once.

    Returns:
        The window; None where the percentiles are equal, or no training image has more than 8 bits.

    Raises:
        DataError: A process that reads images was killed.
    """
    count = min(len(rows), max(IMAGES // len(listings), 1))
    chosen = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    key = sha256_of_lines([f"{PERCENTILES} {_PIXELS}", *(hashes[i] for i in chosen.tolist())])
    path = cache_dir / "windows" / f"{key}.json"
    try:
        low, high = json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        parts = [
            part
            for listing, column in zip(listings, rows[chosen].T.tolist(), strict=True)
            for part in _sample(listing, column)
        ]
        values = np.concatenate(parts)
        low, high = _ends(values) if len(values) else (0.0, 0.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps([low, high]))
    return (float(low), float(high)) if low < high else None


def _ends(values: NDArray[np.float32]) -> Range:
    """Return values that occur, so that the window of whole numbers is one of whole numbers."""
    low = np.percentile(values, PERCENTILES[0], method="lower")
    high = np.percentile(values, PERCENTILES[1], method="higher")
    return float(low), float(high)


def _sample(listing: Listing, rows: Sequence[int]) -> list[NDArray[np.float32]]:
    samples = [listing.samples[row] for row in rows]
    with Workers() as workers:
        found = workers.map(partial(values_of_all, listing.read), samples, in_memory=listing.in_memory)
        return list(track(found, f"Gray levels of {listing.modality}", len(samples)))


def values_of_all(read: Callable[[Sample], Picture], samples: Sequence[Sample]) -> list[NDArray[np.float32]]:
    """Return evenly spaced values of each image, none of one with plain 8-bit pixels."""
    return [_values_of(read(sample)) for sample in samples]


def _values_of(picture: Picture) -> NDArray[np.float32]:
    if picture.full is None:
        return np.empty(0, np.float32)
    values = picture.values.ravel()
    chosen = np.linspace(0, values.size - 1, min(values.size, _PIXELS)).astype(np.int64)
    return values[chosen].astype(np.float32)
