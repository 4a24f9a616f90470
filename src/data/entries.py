"""What is known of image files: their state on disk, and what decoding found in them."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .pixels import BadImage, Range, Shown, applied_window

FORMAT = 5
"""Part of every name in the cache: raise it when decoding, hashing or resizing changes."""

_UNKNOWN = -1
_WRAP = 2**64 - 1  # times are only compared, so one before 1970 or after 2554 may wrap around
STATE = ("size", "mtime_ns", "ctime_ns")
"""Columns that tell whether a file has changed."""
COLUMNS = np.dtype(
    [
        ("size", "<i8"),
        ("mtime_ns", "<u8"),
        ("ctime_ns", "<u8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("channels", "<i4"),
        ("sha", "S64"),
        ("observed", "<f8", (2,)),
        ("shared", "<i4"),
    ]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one file; nothing here depends on the settings: the window is chosen later.

    Attributes:
        size: Bytes of the file.
        mtime_ns: When its content was changed.
        ctime_ns: When it was changed in any way: a file that takes another's place keeps its ``mtime``.
        height: Of the image.
        width: Of the image.
        channels: Of the image, 1 or 3.
        patient: Hash of the patient that the file itself names, empty without.
        sha: SHA-256 of the pixels, empty where ``error`` says why there are none.
        observed: Lowest and highest value.
        full: What the values could be, None for plain 8 bits.
        own: The window that the file asks for.
        error: Why it cannot be read.
        format: Of the file, such as ``PNG``.
        bits: Of each sample.
        alike: Hash of what the patient's name has in common with other spellings of it.
        levels: What names the gray levels that the file asks for by other means than a window.
        corrected: In what earlier versions read the file wrongly.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    height: int = 0
    width: int = 0
    channels: int = 0
    patient: str = ""
    sha: str = ""
    observed: Range | None = None
    full: Range | None = None
    own: Range | None = None
    error: str = ""
    format: str = ""
    bits: int = 0
    alike: str = ""
    levels: str = ""
    corrected: tuple[str, ...] = ()

    def with_error(self, bad: BadImage) -> "Entry":
        """What is known of a file that cannot be read."""
        # What may be readable next time gets a size that no file has, so that the index does not match.
        return replace(self, size=self.size if bad.lasting else _UNKNOWN, sha="", error=str(bad))

    def seen_as(self, shown: Shown) -> str:
        """What names the pixels as they are seen; "" for an image that cannot be."""
        fit = shown.fit if shown.changes(self.height, self.width) else ""
        return _name_pixels(self.sha, how_seen(self, shown.window), fit)


class Shared(NamedTuple):
    """Attributes of `Entry` that many files have in common and that are therefore stored once."""

    patient: str = ""
    full: Range | None = None
    own: Range | None = None
    error: str = ""
    format: str = ""
    bits: int = 0
    alike: str = ""
    levels: str = ""
    corrected: tuple[str, ...] = ()


@dataclass
class Entries:
    """What is known of many files, in columns: a million `Entry` objects would take seconds and gigabytes.

    Attributes:
        rows: Structured array ``(N,)`` of `COLUMNS`. ``shared`` is a number from ``numbers``; ``observed`` is
            NaN where it is unknown.
        numbers: Number of each distinct `Shared`, in order of insertion. Only ever extended, so entries
            derived from each other use the same dict.
    """

    rows: NDArray[np.void]
    numbers: dict[Shared, int] = field(default_factory=dict)

    @classmethod
    def of_entries(cls, entries: Sequence[Entry], numbers: dict[Shared, int]) -> Self:
        """Build the columns of some entries; their `Shared` are added to ``numbers``."""
        found = cls(np.zeros(len(entries), COLUMNS), numbers)
        for position, entry in enumerate(entries):
            found[position] = entry
        return found

    def __len__(self) -> int:
        return len(self.rows)

    def __setitem__(self, position: int, entry: Entry) -> None:
        shared = Shared(*(getattr(entry, name) for name in Shared._fields))
        self.rows[position] = (
            entry.size,
            entry.mtime_ns & _WRAP,
            entry.ctime_ns & _WRAP,
            entry.height,
            entry.width,
            entry.channels,
            entry.sha.encode(),
            entry.observed or (np.nan, np.nan),
            self.numbers.setdefault(shared, len(self.numbers)),
        )

    def pick(self, positions: Iterable[int]) -> Iterator[Entry]:
        """Yield the entries at some positions as objects."""
        shared = list(self.numbers)
        for position in positions:
            row = self.rows[position]
            patient, *others = shared[row["shared"]]
            low, high = row["observed"].tolist()
            observed = None if math.isnan(low) else (low, high)
            size, mtime_ns, ctime_ns, height, width, channels, sha, *_ = row.item()
            known = (size, mtime_ns, ctime_ns, height, width, channels, patient, sha.decode())
            yield Entry(*known, observed, *others)

    def take(self, positions: NDArray[np.int64] | NDArray[np.bool_]) -> "Entries":
        """Return the entries at some positions, or where a mask is set."""
        return Entries(self.rows[positions], self.numbers)

    def where(self, test: Callable[[Shared], object]) -> NDArray[np.bool_]:
        """Return a mask ``(N,)`` of the files whose `Shared` passes a test."""
        passes: NDArray[np.bool_] = np.fromiter(map(bool, map(test, self.numbers)), bool, len(self.numbers))
        return np.take(passes, self.rows["shared"])

    @property
    def has_pixels(self) -> NDArray[np.bool_]:
        """Mask ``(N,)`` of the images that were decoded."""
        return np.asarray(self.rows["sha"] != b"")

    @property
    def is_done(self) -> NDArray[np.bool_]:
        """Mask ``(N,)`` of the images that were decoded or found to be unreadable."""
        return self.has_pixels | self.where(lambda shared: shared.error)

    @property
    def shas(self) -> list[str]:
        """SHA-256 of each image's pixels, empty where there are none."""
        return [sha.decode() for sha in self.rows["sha"].tolist()]

    def each(self, value: Callable[[Shared], str]) -> list[str]:
        """Return a string for each file, computed once per distinct `Shared`."""
        values = list(map(value, self.numbers))
        return [values[number] for number in self.rows["shared"].tolist()]

    def seen_as(self, shown: Shown) -> Iterator[str]:
        """Yield what names the pixels of each image as they are seen; "" for an unreadable image."""
        applied = [how_seen(shared, shown.window) for shared in self.numbers]
        columns = (self.rows[name].tolist() for name in ("shared", "height", "width"))
        for sha, number, height, width in zip(self.shas, *columns, strict=True):
            fit = shown.fit if shown.changes(height, width) else ""
            yield _name_pixels(sha, applied[number], fit)

    def counted(self) -> list[tuple[Shared, int]]:
        """Count the files with each `Shared`, in order of first appearance."""
        numbers, first, counts = np.unique(self.rows["shared"], return_index=True, return_counts=True)
        shared = list(self.numbers)
        return [(shared[numbers[i]], int(counts[i])) for i in np.argsort(first)]


def join_entries(parts: Sequence[Entries]) -> Entries:
    """Concatenate the entries of several listings of one root."""
    return Entries(np.concatenate([part.rows for part in parts]), parts[0].numbers)


def look_at_files(paths: Sequence[str], numbers: dict[Shared, int]) -> Entries:
    """Return the state of each file, or the error of one that cannot be reached; opens no file."""
    gone: dict[int, Entry] = {}

    def state(position: int, path: str) -> tuple[int, int, int]:
        try:
            found = os.stat(path)  # noqa: PTH116 -- a million Path objects take seconds
        except OSError as error:
            gone[position] = Entry(_UNKNOWN, 0, 0, error=f"{path}: {error.strerror}")
            return _UNKNOWN, 0, 0
        return found.st_size, found.st_mtime_ns & _WRAP, found.st_ctime_ns & _WRAP

    states = [(name, COLUMNS[name]) for name in STATE]
    found = Entries(np.zeros(len(paths), COLUMNS), numbers)
    seen = np.fromiter(map(state, range(len(paths)), paths), states, len(paths))
    for name in STATE:
        found.rows[name] = seen[name]
    found.rows["observed"] = np.nan
    found.rows["shared"] = numbers.setdefault(Shared(), len(numbers))
    for position, entry in gone.items():
        found[position] = entry
    return found


def how_seen(known: Entry | Shared, window: Range | None) -> Range | str | None:
    """Return the window that an image is seen through, or what names its file's own `Picture.levels`."""
    if window is None and known.levels:
        return known.levels
    return applied_window(known.own, known.full, window)


def _name_pixels(sha: str, window: Range | str | None, fit: str) -> str:
    return sha and f"{sha} {window}{fit and ' '}{fit}"
