"""Information on image files: state on disk, and results of decoding."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .pixels import ImageError, ImageFormat, Range, applied_window

FORMAT = 5
"""Version in every file name of the cache: increase it when decoding, hashing or resizing changes."""

_UNKNOWN = -1
_WRAP = 2**64 - 1  # times are only compared, so one before 1970 or after 2554 may wrap around
STATE = ("size", "mtime_ns", "ctime_ns")
"""Columns that show whether a file has changed."""
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


class SharedInfo(NamedTuple):
    """The part of `FileInfo` that many files share; each distinct combination is stored once.

    Attributes:
        patient: Hash of the patient named in the file, "" if none.
        full: Range of possible values, None for plain 8 bits.
        own: Window stored in the file.
        error: Why the file cannot be read.
        format: File format, such as ``PNG``.
        bits: Bits per sample.
        alike: Hash that is equal for similar spellings of the patient's name.
        levels: Key of gray levels that the file defines by other means than a window.
        corrected: What earlier versions decoded incorrectly.
    """

    patient: str = ""
    full: Range | None = None
    own: Range | None = None
    error: str = ""
    format: str = ""
    bits: int = 0
    alike: str = ""
    levels: str = ""
    corrected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Information on one file, independent of the settings: the window is chosen later.

    Attributes:
        size: Bytes of the file.
        mtime_ns: Modification time.
        ctime_ns: Change time: a file that replaces another one keeps its ``mtime``.
        height: Image height.
        width: Image width.
        channels: 1 or 3.
        sha: SHA-256 of the pixels, "" for an unreadable image.
        observed: Lowest and highest value.
        shared: What other files may have in common with this one.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    height: int = 0
    width: int = 0
    channels: int = 0
    sha: str = ""
    observed: Range | None = None
    shared: SharedInfo = field(default_factory=SharedInfo)

    def with_error(self, bad: ImageError) -> "FileInfo":
        """Return the information with an error in place of pixels."""
        # A file that may become readable gets an impossible size, so that the index does not match it.
        size, shared = self.size if bad.lasting else _UNKNOWN, self.shared._replace(error=str(bad))
        return replace(self, size=size, sha="", shared=shared)

    def pixel_key(self, image_format: ImageFormat) -> str:
        """Return the key of the rendered pixels, "" for an unreadable image."""
        fit = image_format.fit if image_format.changes(self.height, self.width) else ""
        return _name_pixels(self.sha, gray_level_key(self.shared, image_format.window), fit)


@dataclass
class FileTable:
    """Information on many files, in columns: a million `FileInfo` objects would take seconds and gigabytes.

    Attributes:
        rows: Structured array ``(N,)`` of `COLUMNS`. ``shared`` is a number from ``numbers``; ``observed`` is
            NaN if unknown.
        numbers: Number of each distinct `SharedInfo`, in order of insertion. It only grows, so tables derived
            from each other share one dict.
    """

    rows: NDArray[np.void]
    numbers: dict[SharedInfo, int] = field(default_factory=dict)

    @classmethod
    def of_infos(cls, infos: Sequence[FileInfo], numbers: dict[SharedInfo, int]) -> Self:
        """Build a table; new `SharedInfo` values are added to ``numbers``."""
        found = cls(np.zeros(len(infos), COLUMNS), numbers)
        for position, info in enumerate(infos):
            found[position] = info
        return found

    def __len__(self) -> int:
        return len(self.rows)

    def __setitem__(self, position: int, info: FileInfo) -> None:
        self.rows[position] = (
            info.size,
            info.mtime_ns & _WRAP,
            info.ctime_ns & _WRAP,
            info.height,
            info.width,
            info.channels,
            info.sha.encode(),
            info.observed or (np.nan, np.nan),
            self.numbers.setdefault(info.shared, len(self.numbers)),
        )

    def pick(self, positions: Iterable[int]) -> Iterator[FileInfo]:
        """Yield the files at some positions as `FileInfo`."""
        shared = list(self.numbers)
        for position in positions:
            row = self.rows[position]
            low, high = row["observed"].tolist()
            observed = None if math.isnan(low) else (low, high)
            size, mtime_ns, ctime_ns, height, width, channels, sha, _, number = row.item()
            state = size, mtime_ns, ctime_ns, height, width, channels
            yield FileInfo(*state, sha.decode(), observed, shared[number])

    def take(self, positions: NDArray[np.int64] | NDArray[np.bool_]) -> "FileTable":
        """Return the files at some positions, or where a mask is set."""
        return FileTable(self.rows[positions], self.numbers)

    def where(self, test: Callable[[SharedInfo], object]) -> NDArray[np.bool_]:
        """Return a mask ``(N,)`` of the files whose `SharedInfo` passes a test."""
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
        """SHA-256 of each image's pixels, empty for images that were not decoded."""
        return [sha.decode() for sha in self.rows["sha"].tolist()]

    def each(self, value: Callable[[SharedInfo], str]) -> list[str]:
        """Return a string for each file, computed once per distinct `SharedInfo`."""
        values = list(map(value, self.numbers))
        return [values[number] for number in self.rows["shared"].tolist()]

    def pixel_keys(self, image_format: ImageFormat) -> Iterator[str]:
        """Yield the key of the rendered pixels of each image, "" for an unreadable one."""
        applied = [gray_level_key(shared, image_format.window) for shared in self.numbers]
        columns = (self.rows[name].tolist() for name in ("shared", "height", "width"))
        for sha, number, height, width in zip(self.shas, *columns, strict=True):
            fit = image_format.fit if image_format.changes(height, width) else ""
            yield _name_pixels(sha, applied[number], fit)

    def counted(self) -> list[tuple[SharedInfo, int]]:
        """Count the files with each `SharedInfo`, in order of first appearance."""
        numbers, first, counts = np.unique(self.rows["shared"], return_index=True, return_counts=True)
        shared = list(self.numbers)
        return [(shared[numbers[i]], int(counts[i])) for i in np.argsort(first)]


def concatenate_tables(parts: Sequence[FileTable]) -> FileTable:
    """Concatenate the tables of several listings of one root."""
    return FileTable(np.concatenate([part.rows for part in parts]), parts[0].numbers)


def stat_files(paths: Sequence[str], numbers: dict[SharedInfo, int]) -> FileTable:
    """Return the state of each file, or the error of a missing one, without opening files."""
    gone: dict[int, FileInfo] = {}

    def state(position: int, path: str) -> tuple[int, int, int]:
        try:
            found = os.stat(path)  # noqa: PTH116 -- a million Path objects take seconds
        except OSError as error:
            gone[position] = FileInfo(_UNKNOWN, 0, 0, shared=SharedInfo(error=f"{path}: {error.strerror}"))
            return _UNKNOWN, 0, 0
        return found.st_size, found.st_mtime_ns & _WRAP, found.st_ctime_ns & _WRAP

    states = [(name, COLUMNS[name]) for name in STATE]
    found = FileTable(np.zeros(len(paths), COLUMNS), numbers)
    seen = np.fromiter(map(state, range(len(paths)), paths), states, len(paths))
    for name in STATE:
        found.rows[name] = seen[name]
    found.rows["observed"] = np.nan
    found.rows["shared"] = numbers.setdefault(SharedInfo(), len(numbers))
    for position, info in gone.items():
        found[position] = info
    return found


def gray_level_key(shared: SharedInfo, window: Range | None) -> Range | str | None:
    """Return the window to apply, or the key of the file's own `DecodedImage.levels`."""
    if window is None and shared.levels:
        return shared.levels
    return applied_window(shared.own, shared.full, window)


def _name_pixels(sha: str, window: Range | str | None, fit: str) -> str:
    return sha and f"{sha} {window}{fit and ' '}{fit}"
