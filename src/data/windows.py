"""Choose the gray-level window of a run, and describe its effect on the images for the user."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.console import track
from ..utils.io import atomic_write_text, sha256_of_lines
from .decode import Workers
from .file_info import FileTable, SharedInfo, gray_level_key
from .listing import Listing, Sample
from .pixels import OWN_LEVELS, DecodedImage, Range, applied_window

_8_BIT_SPAN = 255
_SHOWN = 3


def shared_window(table: FileTable, configured: Range | None) -> Range | None:
    """Return the window of all images of more than plain 8 bits, None if they differ."""
    kinds = {gray_level_key(shared, configured) for shared, _ in table.counted()} - {None}
    applied = kinds.pop() if len(kinds) == 1 else None
    return None if isinstance(applied, str) else applied


def check_window(table: FileTable, configured: Range | None) -> list[str]:
    """Return a sentence on images that become one gray by the window, if some do, but not all.

    Raises:
        DataError: All images become one gray, so that nothing could be learned.
    """
    notes = blank_notes(table, configured)
    if notes and len(_blank(table, configured)) == len(table):
        raise DataError(notes[0], public="a window shows every image as one gray")
    return notes


def blank_notes(table: FileTable, configured: Range | None) -> list[str]:
    """Return a sentence on images that become one gray by the window, if any do."""
    blank = _blank(table, configured)
    if not len(blank):
        return []
    named = "the window of the file"
    if configured is not None:
        named = f"data.window=[{configured[0]:g}, {configured[1]:g}]"
    return [
        f"{len(blank)} of {len(table)} images hold only values outside of {named} and are shown as one "
        f"gray: they hold {_span_of(blank.rows['observed'])}; choose data.window in the units of the files "
        "(HU for CT)"
    ]


def _blank(table: FileTable, configured: Range | None) -> FileTable:
    """Return the images that have contrast, but become one gray by the window."""
    applied = [applied_window(shared.own, shared.full, configured) for shared in table.numbers]
    ends = np.array([window or (-np.inf, np.inf) for window in applied], dtype=np.float64).reshape(-1, 2)
    low, high = ends[table.rows["shared"]].T
    lowest, highest = table.rows["observed"].T
    return table.take((lowest < highest) & ((highest <= low) | (lowest >= high)))


def window_notes(table: FileTable, configured: Range | None) -> list[str]:
    """Return sentences on windows that are missing, differ between files, or change nothing."""
    with_units = [(shared, count) for shared, count in table.counted() if shared.full is not None]
    if configured is not None:
        return [] if with_units else ["data.window changes nothing: all images have plain 8-bit pixels"]
    own: Counter[Range | str] = Counter()
    for shared, count in with_units:
        if asked := shared.levels or shared.own:
            own[asked] += count
    return [*_note_full_range(table.take(table.where(is_wide))), *_note_different(own)]


def percentile_note(table: FileTable, window: Range) -> str:
    """Return a sentence on what a window of percentiles is used for."""
    wide = table.take(table.where(is_wide))
    others = "" if len(wide) == len(table) else " (and so are all others, regardless of their own window)"
    return (
        f"{len(wide)} images of more than 8 bits name no window: they are shown{others} from {_span(window)}"
        ", the 0.5th to 99.5th percentile of the training images; data.window=[low, high] sets another"
    )


def is_wide(shared: SharedInfo) -> bool:
    """Return whether the values exceed 8 bits and the file names no window."""
    if shared.own is not None or shared.levels or shared.full is None:
        return False
    return shared.full[1] - shared.full[0] > _8_BIT_SPAN


def _note_full_range(wide: FileTable) -> list[str]:
    if not len(wide):
        return []
    full = np.array([shared.full for shared, _ in wide.counted()], dtype=np.float64)
    return [
        f"{len(wide)} images of more than 8 bits name no window: they are shown over all that their type "
        f"can hold, {_span_of(full)}, and hold {_span_of(wide.rows['observed'])}; data.window=[low, high] "
        "uses the gray levels better"
    ]


def _note_different(own: Counter[Range | str]) -> list[str]:
    if len(own) < 2:
        return []
    shown = ", ".join(
        f"{asked if isinstance(asked, str) else _span(asked)} in {count}"
        for asked, count in own.most_common(_SHOWN)
    )
    more = ", ..." if len(own) > _SHOWN else ""
    return [
        f"the files ask for {len(own)} different windows ({shown}{more}), so that the same value is not "
        "the same gray; data.window=[low, high] shows all alike"
    ]


def _span_of(ranges: NDArray[np.float64]) -> str:
    """Return the union of ranges ``(N, 2)``, such as ``-160 to 240``."""
    return _span((ranges[:, 0].min(), ranges[:, 1].max()))


def _span(ends: Range) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"


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
        hashes: Hash of each training sample, N.
        cache_dir: Folder of the cache for the result.

    Returns:
        The window; None if the percentiles are equal, or no training image has more than 8 bits.

    Raises:
        DataError: A worker process was killed.
    """
    count = min(len(rows), max(IMAGES // len(listings), 1))
    chosen = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    key = sha256_of_lines([f"{PERCENTILES} {_PIXELS}", *(hashes[i] for i in chosen.tolist())])
    path = cache_dir / "windows" / f"{key}.json"
    try:
        low, high = json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        columns = zip(listings, rows[chosen].T.tolist(), strict=True)
        values = np.concatenate([part for listing, column in columns for part in _sample(listing, column)])
        low = high = 0.0
        if len(values):  # percentiles that occur in the values, so that integers give an integer window
            low = float(np.percentile(values, PERCENTILES[0], method="lower"))
            high = float(np.percentile(values, PERCENTILES[1], method="higher"))
        atomic_write_text(path, json.dumps([low, high]))
    return (float(low), float(high)) if low < high else None


def _sample(listing: Listing, rows: Sequence[int]) -> list[NDArray[np.float32]]:
    samples = [listing.samples[row] for row in rows]
    with Workers() as workers:
        found = workers.map(partial(values_of_all, listing.read), samples, in_memory=listing.in_memory)
        return list(track(found, f"Gray levels of {listing.modality}", len(samples)))


def values_of_all(
    read: Callable[[Sample], DecodedImage], samples: Sequence[Sample]
) -> list[NDArray[np.float32]]:
    """Return evenly spaced values of each image, no values for plain 8-bit pixels."""
    return [_values_of(read(sample)) for sample in samples]


def _values_of(image: DecodedImage) -> NDArray[np.float32]:
    if image.full is None:
        return np.empty(0, np.float32)
    values = image.values.ravel()
    chosen = np.linspace(0, values.size - 1, min(values.size, _PIXELS)).astype(np.int64)
    return values[chosen].astype(np.float32)


CORRECT_FROM = 5
"""The first cache `FORMAT` that decodes such files correctly."""


def describe_corrected(table: FileTable, window: Range | None) -> str:
    """Count files that earlier versions decoded incorrectly, such as ``3 DICOM with padding``; "" if none.

    With a configured window, the files' own gray levels are not used.
    """
    counts: Counter[str] = Counter()
    for shared, count in table.counted():
        for kind in shared.corrected:
            if kind != OWN_LEVELS or window is None:
                counts[kind] += count
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
