"""On-disk cache of arrays of decoded images with a size limit and least-recently-used eviction.

``{name}.npy`` holds uint8 images ``(N, C, S, S)`` followed by their checksums. ``{name}.rows`` lists the
pixel key of each row, so that other arrays can copy it. A process holds a shared lock on each array that it
has open; the lock ends with the process. An array without a lock is unused and can be removed.
"""

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import DataError
from ..utils.cli import warn
from ..utils.io import TEMP_PREFIX, atomic_write_text, file_lock, is_temp
from .image_array import CHECKSUM, ImageArray, ImageOffsets

GIGABYTE = 1_000_000_000

_ROWS = ".rows"
_HEADER = 128  # bytes of a NumPy header of format 1.0 for four dimensions


@dataclass(frozen=True)
class ArrayCache:
    """The arrays of one cache.

    Attributes:
        folder: Folder of the arrays.
        limit: Maximum total size in bytes.
    """

    folder: Path
    limit: int

    def find(self, name: str, shape: tuple[int, ...] | None = None) -> ImageArray | None:
        """Open the array of this name and mark it as used; return None if it does not exist.

        Args:
            name: Name of the array.
            shape: Expected shape ``(N, C, S, S)``, None for any. An array of another shape or without
                checksums is removed as damaged.
        """
        path = self.folder / f"{name}.npy"
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(path)
            found = ImageArray.of_file(file)
            if shape is not None and (found.shape != shape or found.checksums is None):
                raise ValueError("the header is damaged, or the file is cut off")
            return found
        except (FileNotFoundError, ValueError) as error:
            file.close()
            if isinstance(error, ValueError):
                warn(f"{path}: {error}; its images are decoded again")
                _remove(path)
            return None

    @contextmanager
    def new(self, key: str, shape: tuple[int, int, int, int]) -> Iterator["ArrayWriter"]:
        """Make room for an array and yield its writer.

        An unfinished array of the same key and shape, left by a killed process, is continued.

        Args:
            key: Identifies the writer; the caller must hold a lock for it.
            shape: ``(N, C, S, S)``.

        Raises:
            DataError: The array exceeds the limit, or the other arrays are in use.
        """
        temp = self.folder / f"{TEMP_PREFIX}{key}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with file_lock(self.folder / ".lock"):
                size = _HEADER + math.prod(shape) + shape[0] * CHECKSUM.itemsize
                self._make_room(size, temp)
                rows = _read_rows(_rows_of(temp), shape[1:]) if _size(temp) == size else []
                file = temp.open("rb+" if rows else "wb+")
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(size)  # reserves the size for other processes
            with file:
                yield ArrayWriter(
                    self, file, temp, shape, {i: row for i, row in enumerate(rows) if row is not None}
                )
        except (OSError, DataError):  # after an interrupt, the next process continues the file
            _remove(temp)
            raise

    def _make_room(self, size: int, temp: Path) -> None:
        sizes = {path: _size(path) for path in self.folder.glob("*.npy") if path != temp}
        if size > self.limit:  # check first, so that nothing is removed in vain
            raise self._no_room(size, 0)
        # Unfinished arrays of killed processes are removed first.
        for path in sorted(sizes, key=lambda path: (not is_temp(path), _last_use(path))):
            if sum(sizes.values()) + size > self.limit and _is_unused(path, remove=True):
                del sizes[path]
        taken = sum(sizes.values())
        if taken + size > self.limit:
            raise self._no_room(size, taken)

    def _no_room(self, size: int, taken: int) -> DataError:
        in_use = f", {taken / GIGABYTE:.3g} GB more are in use" if taken else ""
        return DataError(
            f"data.cache_gb: the decoded images take {size / GIGABYTE:.3g} GB{in_use}, and the cache may "
            f"take {self.limit / GIGABYTE:.3g} GB; raise data.cache_gb, or lower data.image_size"
        )


@dataclass
class ArrayWriter:
    """An array that is being written; `keep` publishes it under its name.

    Attributes:
        cache: The cache that it belongs to.
        file: The open file.
        temp: Path of the file, for worker processes that write into it.
        shape: ``(N, C, S, S)``.
        rows: Pixel key of each row written so far, "" for an unreadable image.
    """

    cache: ArrayCache
    file: IO[bytes]
    temp: Path
    shape: tuple[int, int, int, int]
    rows: dict[int, str]

    def place(self, row: int) -> ImageOffsets:
        """Return the offsets of a row."""
        return ImageOffsets.of_row(row, self.shape, _HEADER)

    def copy_from_others(self, wanted: Mapping[int, str]) -> Iterator[int]:
        """Copy rows from other arrays that have the same pixels; yield the rows that were copied."""
        for path in sorted(self.cache.folder.glob(f"*{_ROWS}")):
            there = [] if is_temp(path) else _read_rows(path, self.shape[1:])
            places = {pixels: place for place, pixels in enumerate(there) if pixels}
            found = [row for row, pixels in wanted.items() if pixels in places and row not in self.rows]
            if not found or (source := self.cache.find(path.stem)) is None:
                continue
            for row in found:
                image = source.read(np.array([places[wanted[row]]]))
                self.place(row).write(self.file.fileno(), image.tobytes())
                self.rows[row] = wanted[row]
                yield row

    def save_rows(self) -> None:
        """Save the pixel keys written so far, so that another process can continue after a kill."""
        os.fsync(self.file.fileno())
        _write_rows(_rows_of(self.temp), self.shape, self.rows)

    def keep(self, name: str) -> ImageArray:
        """Finish the array, move it to its final name, and open it."""
        number, size = self.file.fileno(), math.prod(self.shape[1:])
        for row in {*range(self.shape[0])} - {row for row, pixels in self.rows.items() if pixels}:
            place = self.place(row)  # unreadable image: black, because nothing was written
            place.write(number, os.pread(number, size, place.pixels))
        self.file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        assert self.file.tell() == _HEADER
        self.file.flush()
        os.fsync(self.file.fileno())
        path = self.cache.folder / f"{name}.npy"
        _write_rows(_rows_of(path), self.shape, self.rows)
        self.temp.replace(path)
        _rows_of(self.temp).unlink(missing_ok=True)
        file = path.open("rb", buffering=0)
        with file_lock(self.cache.folder / ".lock"):  # no eviction while the lock changes hands
            fcntl.flock(self.file, fcntl.LOCK_SH)
            fcntl.flock(file, fcntl.LOCK_SH)
        return ImageArray.of_file(file)


@dataclass(frozen=True)
class UnusedArray:
    """An array that no process has open: path, size in bytes, and seconds since its last use."""

    path: Path
    size: int
    age: float

    def remove(self) -> None:
        """Remove the array; raise a `DataError` if a process has opened it in the meantime."""
        if not _is_unused(self.path, remove=True):
            raise DataError(f"{self.path} has been opened by another process")


def find_unused(folder: Path, seconds: float) -> list[UnusedArray]:
    """Return the arrays that no process has open and that were not used for so long, oldest first."""
    now = time.time()
    arrays = [
        UnusedArray(path, _size(path), now - _last_use(path))
        for path in folder.glob("*.npy")
        if not is_temp(path) and _is_unused(path)
    ]
    return sorted((array for array in arrays if array.age > seconds), key=lambda array: -array.age)


def _rows_of(array: Path) -> Path:
    return array.with_suffix(_ROWS)


def _write_rows(path: Path, shape: Sequence[int], rows: Mapping[int, str]) -> None:
    content = {"shape": list(shape), "rows": [rows.get(row) for row in range(shape[0])]}
    atomic_write_text(path, json.dumps(content))


def _read_rows(path: Path, image_shape: Sequence[int]) -> list[str | None]:
    """Return the pixel key of each row, None for unwritten rows; [] if missing or of other shape."""
    try:
        content = json.loads(path.read_text())
        rows: list[str | None] = content["rows"]
        return rows if content["shape"] == [len(rows), *image_shape] else []
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []


def _remove(array: Path) -> None:
    array.unlink(missing_ok=True)
    _rows_of(array).unlink(missing_ok=True)


def _last_use(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _is_unused(path: Path, *, remove: bool = False) -> bool:
    """Return whether no process uses an array; with ``remove``, delete it under the lock that shows it."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if remove:
            _remove(path)
    return True
