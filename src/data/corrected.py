"""Files that earlier versions read wrongly, so that an old model knows other pixels of them."""

from collections import Counter

from .entries import Entries
from .images import OWN_LEVELS, Range

CORRECT_FROM = 5
"""The `FORMAT` from which on such files are read right."""


def describe_corrected(entries: Entries, window: Range | None) -> str:
    """Return the kinds of such files with the number of each, such as ``3 DICOM with padding``; "" without.

    Args:
        entries: What is known of the files.
        window: The configured one, beside which the files' own gray levels do not matter.
    """
    counts: Counter[str] = Counter()
    for shared, count in entries.counted():
        for kind in shared.corrected:
            if kind != OWN_LEVELS or window is None:
                counts[kind] += count
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
