"""Which window the images of a run are seen through, and what of it the user should know."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from ..errors import DataError
from .entries import Entries, Shared, how_seen
from .images import Range, applied_window

_8_BIT_SPAN = 255
_SHOWN = 3


def one_window(entries: Entries, configured: Range | None) -> Range | None:
    """The window that all images with more than plain 8-bit pixels share, None where they share none."""
    kinds = {how_seen(shared, configured) for shared, _ in entries.counted()} - {None}
    applied = kinds.pop() if len(kinds) == 1 else None
    return None if isinstance(applied, str) else applied


def check_window(entries: Entries, configured: Range | None) -> list[str]:
    """Return `blank_notes`, unless it is all images that are shown as one gray.

    Raises:
        DataError: It is, so that nothing could be learned.
    """
    blank = _blank(entries, configured)
    notes = blank_notes(entries, configured)
    if notes and len(blank) == len(entries):
        raise DataError(notes[0], public="a window shows every image as one gray")
    return notes


def blank_notes(entries: Entries, configured: Range | None) -> list[str]:
    """Return a sentence on images of which a window shows nothing, if there are any."""
    blank = _blank(entries, configured)
    if not len(blank):
        return []
    observed = blank.rows["observed"]
    held = _span((float(observed[:, 0].min()), float(observed[:, 1].max())))
    named = "the window of the file" if configured is None else f"data.window={_list(configured)}"
    return [
        f"{len(blank)} of {len(entries)} images hold only values outside of {named} and are shown as one "
        f"gray: they hold {held}; choose data.window in the units of the files (HU for CT)"
    ]


def _blank(entries: Entries, configured: Range | None) -> Entries:
    """Return the images that are not one gray by themselves, but through their window."""
    applied = [applied_window(shared.own, shared.full, configured) for shared in entries.numbers]
    ends = np.array([window or (-np.inf, np.inf) for window in applied], dtype=np.float64).reshape(-1, 2)
    low, high = ends[entries.rows["shared"]].T
    lowest, highest = entries.rows["observed"].T
    return entries.take((lowest < highest) & ((highest <= low) | (lowest >= high)))


def window_notes(entries: Entries, configured: Range | None) -> list[str]:
    """Sentences on windows that are missing, differ between files, or change nothing."""
    with_units = [(shared, count) for shared, count in entries.counted() if shared.full is not None]
    if configured is not None:
        return [] if with_units else ["data.window changes nothing: all images have plain 8-bit pixels"]
    own: Counter[Range | str] = Counter()
    for shared, count in with_units:
        if asked := shared.levels or shared.own:
            own[asked] += count
    return [*_note_full_range(entries.take(entries.where(is_wide))), *_note_different(own)]


def percentile_note(entries: Entries, window: Range) -> str:
    """Return a sentence on what a window of percentiles is used for."""
    wide = entries.take(entries.where(is_wide))
    others = "" if len(wide) == len(entries) else " (and so are all others, whatever window they name)"
    return (
        f"{len(wide)} images of more than 8 bits name no window: they are shown{others} from {_span(window)}"
        ", the 0.5th to 99.5th percentile of the training images; data.window=[low, high] sets another"
    )


def is_wide(shared: Shared) -> bool:
    """Return whether the values exceed 8 bits and the file names no window."""
    if shared.own is not None or shared.levels or shared.full is None:
        return False
    return shared.full[1] - shared.full[0] > _8_BIT_SPAN


def _note_full_range(wide: Entries) -> list[str]:
    if not len(wide):
        return []
    full = _union(shared.full for shared, _ in wide.counted())
    observed = (float(wide.rows["observed"][:, 0].min()), float(wide.rows["observed"][:, 1].max()))
    return [
        f"{len(wide)} images of more than 8 bits name no window: they are shown over all that their type "
        f"can hold, {_span(full)}, and hold {_span(observed)}; data.window=[low, high] uses the gray "
        "levels better"
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


def _union(ranges: Iterable[Range | None]) -> Range:
    known = [ends for ends in ranges if ends is not None]
    return min(low for low, _ in known), max(high for _, high in known)


def _list(ends: Range) -> str:
    return f"[{ends[0]:g}, {ends[1]:g}]"


def _span(ends: Range) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"
