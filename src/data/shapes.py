"""The shapes of images by class: bars of padding can show the class where shapes differ between classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .cache import DecodedImages
from .records import Records

_DIFFERENT = 1.05  # ratio of two classes' medians


class Aspect(NamedTuple):
    """Width divided by height of the images of a class, as stored (before an EXIF rotation)."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show the range where there is one."""
        span = "" if self.low == self.high else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.median:.2f}{span}"


def aspects_by_class(
    decoded: Sequence[DecodedImages], records: Records, classes: Sequence[str]
) -> dict[str, Aspect]:
    """Return the aspect ratios of the images of each class, over all modalities and splits."""
    ratios = []
    for images, rows in zip(decoded, records.rows.T, strict=True):
        known = images.entries.rows[np.searchsorted(images.rows, rows)]
        ratios.append(known["width"] / known["height"])
    joined, labels = np.concatenate(ratios), np.tile(records.labels, len(ratios))
    of_class = {name: joined[labels == label] for label, name in enumerate(classes)}
    return {
        name: Aspect(float(np.median(found)), float(found.min()), float(found.max()))
        for name, found in of_class.items()
        if len(found)
    }


def aspect_notes(aspects: dict[str, Aspect]) -> list[str]:
    """Return a sentence if the shape of an image may reveal its class."""
    medians = [aspect.median for aspect in aspects.values()]
    if max(medians, default=1.0) / min(medians, default=1.0) < _DIFFERENT:
        return []
    shown = ", ".join(f"{name} {aspect}" for name, aspect in aspects.items())
    return [
        f"the images of the classes differ in width / height ({shown}): a network can learn the class from "
        "their shape, with data.fit=pad from the black bars; check how the images were taken or cropped"
    ]
