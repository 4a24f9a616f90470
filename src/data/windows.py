"""Which window the images of a run are seen through, and what of it the user should know."""

from collections import Counter
from collections.abc import Iterable, Sequence

from src.data.entries import Entry
from src.data.images import Range, applied_window

_8_BIT_SPAN = 255
_SHOWN = 3


def one_window(entries: Sequence[Entry], configured: Range | None) -> Range | None:
    """The window that all images with more than plain 8-bit pixels share, None where they share none."""
    applied = {applied_window(entry.own, entry.full, configured) for entry in entries} - {None}
    return applied.pop() if len(applied) == 1 else None


def window_notes(entries: Sequence[Entry], configured: Range | None) -> list[str]:
    """Sentences on windows that are missing, differ between files, or change nothing."""
    with_units = [entry for entry in entries if entry.full is not None]
    if configured is not None:
        return [] if with_units else ["data.window changes nothing: all images have plain 8-bit pixels"]
    return [*_note_full_range(with_units), *_note_different([entry.own for entry in with_units])]


def _note_full_range(entries: Sequence[Entry]) -> list[str]:
    wide = [e for e in entries if e.own is None and e.full and e.full[1] - e.full[0] > _8_BIT_SPAN]
    if not wide:
        return []
    full, observed = _union(entry.full for entry in wide), _union(entry.observed for entry in wide)
    return [
        f"{len(wide)} images of more than 8 bits name no window: they are shown over all that their type "
        f"can hold, {_span(full)}, and hold {_span(observed)}; data.window=[low, high] uses the gray "
        "levels better"
    ]


def _note_different(windows: Sequence[Range | None]) -> list[str]:
    own = Counter(window for window in windows if window is not None)
    if len(own) < 2:
        return []
    shown = ", ".join(f"{_span(window)} in {count}" for window, count in own.most_common(_SHOWN))
    more = ", ..." if len(own) > _SHOWN else ""
    return [
        f"the files ask for {len(own)} different windows ({shown}{more}), so that the same value is not "
        "the same gray; data.window=[low, high] shows all alike"
    ]


def _union(ranges: Iterable[Range | None]) -> Range:
    known = [ends for ends in ranges if ends is not None]
    return min(low for low, _ in known), max(high for _, high in known)


def _span(ends: Range) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"
