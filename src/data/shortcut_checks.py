"""Warn of shortcuts: file properties and image shapes that reveal the class and could be learned."""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .decode_cache import DecodedListing
from .file_info import FileTable, SharedInfo
from .join_modalities import Records

Counts = NDArray[np.int64]
"""Images by value of a property (rows) and class (columns)."""

_REVEALING = 0.5
"""A property reveals the class from this Cramér's V on: 1 if it always does, 0.5 if it separates two classes
with an AUC of 0.75."""
_FEWEST = 12
"""Fewer images are not judged."""
_GROUPS = 10
_SHOWN_CLASSES, _SHOWN_VALUES, _SHOWN_FILES = 4, 2, 5


class _Property(NamedTuple):
    """A property of files: its name, the number of each file's value (from 0), and a name for each value."""

    name: str
    values: NDArray[np.int64]
    value_name: Callable[[int], str]


def find_shortcuts(decoded: Sequence[DecodedListing]) -> list[str]:
    """Return a sentence for each modality whose kinds of files reveal the class; it names no image.

    Color, bits, format and image size are compared with the class by Cramér's V.
    """
    return [
        f"{images.listing.modality}: the kind of file reveals the class, and a network may learn that "
        f"instead of the images: {'; '.join(found)}. Export all images in the same way, or check that the "
        "images of each class are from the same sources"
        for images in decoded
        if (found := _revealing(images))
    ]


def find_rare_color(decoded: Sequence[DecodedListing], channels: str | int) -> list[str]:
    """Return a sentence for each modality in which ``channels="auto"`` means RGB for a minority in color."""
    notes = []
    for images in decoded if channels == "auto" else ():
        colored = np.flatnonzero(images.table.rows["channels"] > 1).tolist()
        found, count = len(colored), len(images.table)
        if 0 < found < count / 2:
            files = ", ".join(images.samples[i].key for i in colored[:_SHOWN_FILES])
            more = f" and {found - _SHOWN_FILES} more" if found > _SHOWN_FILES else ""
            notes.append(
                f"{images.listing.modality}: {found} of {count} images {'is' if found == 1 else 'are'} "
                f"stored in color, so that all get three channels: {files}{more}; leave such images out "
                "(data.exclude, or their lines of the manifest), or read all as gray with data.channels=1"
            )
    return notes


def _revealing(images: DecodedListing) -> list[str]:
    """Return the properties that reveal the class, each with the most common values by class."""
    if len(images.table) < _FEWEST:
        return []
    classes = images.listing.classes
    labels = np.fromiter(map(attrgetter("label"), images.samples), np.int64, len(images.table))
    found: dict[str, str] = {}
    for kind in _properties(images.table):
        counts = np.zeros((kind.values.max() + 1, len(classes)), np.int64)
        np.add.at(counts, (kind.values, labels), 1)
        strength = cramers_v(counts)
        if strength >= _REVEALING and kind.name not in found:
            found[kind.name] = f"{kind.name} (Cramér's V {strength:.2f}; {_shown(counts, kind, classes)})"
    return list(found.values())


def _properties(table: FileTable) -> Iterator[_Property]:
    is_color = (table.rows["channels"] > 1).astype(np.int64)
    yield _Property("color", is_color, ("gray", "color").__getitem__)
    yield _of_shared("bits", table, lambda shared: f"of {shared.bits} bits")
    yield _of_shared("format", table, lambda shared: shared.format)
    height, width = (table.rows[side].astype(np.int64) for side in ("height", "width"))
    sizes, values = np.unique(height << 32 | width, return_inverse=True)
    yield _Property("image size", values, lambda i: f"of {sizes[i] & 0xFFFFFFFF} x {sizes[i] >> 32}")
    if len(sizes) <= _GROUPS:
        return
    # Where each image has a size of its own, small ones may be of one class and large ones of another.
    sides = np.sqrt(height * width)
    ends = np.unique(np.quantile(sides, np.arange(1, _GROUPS) / _GROUPS))
    groups = np.digitize(sides, ends)
    yield _Property(
        "image size", groups, lambda i: f"of about {np.median(sides[groups == i]):.0f} pixels a side"
    )


def _of_shared(name: str, table: FileTable, value: Callable[[SharedInfo], str]) -> _Property:
    names, numbers = np.unique(list(map(value, table.numbers)), return_inverse=True)
    return _Property(name, numbers[table.rows["shared"]], names.__getitem__)


def cramers_v(counts: Counts) -> float:
    """Return how well rows predict columns, from 0 to 1, corrected for many rows with few images each.

    Source: Bergsma, A bias-correction for Cramér's V and Tschuprow's T, 2013.
    """
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    total, (rows, columns) = int(counts.sum()), counts.shape
    if total < 2 or min(rows, columns) < 2:
        return 0.0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    excess = ((counts - expected) ** 2 / expected).sum() / total - (rows - 1) * (columns - 1) / (total - 1)
    fewer = min(size - (size - 1) ** 2 / (total - 1) for size in (rows, columns))
    return float(np.sqrt(excess / (fewer - 1))) if excess > 1e-9 and fewer > 1 else 0.0


def _shown(counts: Counts, kind: _Property, classes: Sequence[str]) -> str:
    """Return the most common values of each class, such as ``neg: 12 gray; pos: 11 color, 1 gray``."""
    parts = []
    for name, column in zip(classes[:_SHOWN_CLASSES], counts.T, strict=False):
        common = np.argsort(-column, kind="stable")[:_SHOWN_VALUES].tolist()
        values = (f"{column[i]} {kind.value_name(i)}" for i in common if column[i])
        parts.append(f"{name}: {', '.join(values)}")
    return "; ".join(parts) + "; ..." * (len(classes) > _SHOWN_CLASSES)


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
    decoded: Sequence[DecodedListing], records: Records, classes: Sequence[str]
) -> dict[str, Aspect]:
    """Return the aspect ratios of the images of each class, over all modalities and splits."""
    ratios = []
    for images, rows in zip(decoded, records.rows.T, strict=True):
        known = images.table.rows[np.searchsorted(images.rows, rows)]
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
