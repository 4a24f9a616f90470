"""A folder of packs: arrays of decoded images, bounded in size, the least recently used going first.

A pack ``{name}.npy`` holds uint8 images ``(N, C, S, S)``, then their checksums; ``{name}.rows`` names the
pixels of each, so that another pack can take them over. While a process has one open it holds a shared lock
on the file, which ends with the process however it ends. A pack without a lock is unused and can be removed.
"""

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import DataError
from ..utils.cli import warn
from ..utils.io import TEMP_PREFIX, atomic_write_text, file_lock
from .image_array import CHECKSUM, ImageArray, Place

GIGABYTE = 1_000_000_000

_ROWS = ".rows"
_HEADER = 128  # bytes of a NumPy header of format 1.0 for four dimensions


@dataclass(frozen=True)
class PackFolder:
    """The packs of one cache.

    Attributes:
        folder: Where they lie.
        limit: Bytes that all of them may take together.
    """

    folder: Path
    limit: int

    def find(self, name: str, shape: tuple[int, ...] | None = None) -> ImageArray | None:
        """Open the pack of this name, None where there is none; from now on it counts as used.

        Args:
            name: Its name.
            shape: What it holds, ``(N, C, S, S)``; another one is removed as damaged, as is one without
                checksums. None takes any.
        """
        path = self._path(name)
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

    def contents(self, image_shape: tuple[int, ...]) -> Iterator[tuple[str, list[str | None]]]:
        """The name of each pack of images of this shape, and what names the pixels of its rows."""
        for path in sorted(self.folder.glob(f"*{_ROWS}")):
            if not _is_temp(path) and (rows := _read_rows(path, image_shape)):
                yield path.stem, rows

    @contextmanager
    def new(self, key: str, shape: tuple[int, int, int, int]) -> Iterator["NewPack"]:
        """Makes room for a pack and yields it to be filled.

        What a process that was killed has left of one of the same key and shape is gone on with.

        Args:
            key: Tells apart those that are made at the same time; the caller's lock makes it its own.
            shape: ``(N, C, S, S)``.

        Raises:
            DataError: It is larger than the limit, or what else is there is in use.
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
                file.truncate(size)  # what others see as taken, long before it is written
            with file:
                yield NewPack(
                    self, file, temp, shape, {i: row for i, row in enumerate(rows) if row is not None}
                )
        except (OSError, DataError):  # not where the process is stopped: the next one goes on
            _remove(temp)
            raise

    def _make_room(self, size: int, temp: Path) -> None:
        sizes = {path: _size(path) for path in self.folder.glob("*.npy") if path != temp}
        if size > self.limit:  # before anything is removed in vain
            raise self._no_room(size, 0)
        # What a killed process left half-written goes first.
        for path in sorted(sizes, key=lambda path: (not _is_temp(path), _last_use(path))):
            if sum(sizes.values()) + size > self.limit and _remove_unused(path):
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

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


@dataclass
class NewPack:
    """A pack that is being written; `keep` gives it its name.

    Attributes:
        packs: Where it will be.
        file: It, open.
        temp: Its path, for other processes that write into it.
        shape: ``(N, C, S, S)``.
        rows: Of the rows that are written, what names the pixels; "" for an image that cannot be read.
    """

    packs: PackFolder
    file: IO[bytes]
    temp: Path
    shape: tuple[int, int, int, int]
    rows: dict[int, str]

    def place(self, row: int) -> Place:
        """Return where a row belongs."""
        return Place.of_row(row, self.shape, _HEADER)

    def copy_from_others(self, wanted: Mapping[int, str]) -> Iterator[int]:
        """Fills rows with pixels that another pack has; yields those that it could."""
        for name, there in self.packs.contents(self.shape[1:]):
            places = {pixels: place for place, pixels in enumerate(there) if pixels}
            found = [row for row, pixels in wanted.items() if pixels in places and row not in self.rows]
            if not found or (source := self.packs.find(name)) is None:
                continue
            for row in found:
                image = source.read(np.array([places[wanted[row]]]))
                self.place(row).write(self.file.fileno(), image.tobytes())
                self.rows[row] = wanted[row]
                yield row

    def save_rows(self) -> None:
        """From here on a process that is killed leaves the rows so far to the next."""
        os.fsync(self.file.fileno())
        _write_rows(_rows_of(self.temp), self.shape, self.rows)

    def keep(self, name: str) -> ImageArray:
        """Finish the pack, give it its name, and open it."""
        number, size = self.file.fileno(), math.prod(self.shape[1:])
        for row in {*range(self.shape[0])} - {row for row, pixels in self.rows.items() if pixels}:
            place = self.place(row)  # of an image that cannot be read: black, as nothing was written
            place.write(number, os.pread(number, size, place.pixels))
        self.file.seek(0)
        _write_header(self.file, self.shape)
        self.file.flush()
        os.fsync(self.file.fileno())
        path = self.packs._path(name)
        _write_rows(_rows_of(path), self.shape, self.rows)
        self.temp.replace(path)
        _rows_of(self.temp).unlink(missing_ok=True)
        file = path.open("rb", buffering=0)
        with file_lock(self.packs.folder / ".lock"):  # nobody makes room while no lock is held
            fcntl.flock(self.file, fcntl.LOCK_SH)
            fcntl.flock(file, fcntl.LOCK_SH)
        return ImageArray.of_file(file)


@dataclass(frozen=True)
class OldPack:
    """A pack that nobody uses: its path, bytes, and the seconds since its last use."""

    path: Path
    size: int
    age: float

    def remove(self) -> None:
        """Removes it.

        Raises:
            DataError: A process has opened it since.
        """
        if not _remove_unused(self.path):
            raise DataError(f"{self.path} is in use by now")


def find_old(folder: Path, seconds: float) -> list[OldPack]:
    """The packs that no process has open, and whose last use is longer ago; the oldest first."""
    now = time.time()
    packs = [
        OldPack(path, _size(path), now - _last_use(path))
        for path in folder.glob("*.npy")
        if not _is_temp(path) and not _is_used(path)
    ]
    return sorted((pack for pack in packs if pack.age > seconds), key=lambda pack: -pack.age)


def _rows_of(pack: Path) -> Path:
    return pack.with_suffix(_ROWS)


def _write_rows(path: Path, shape: Sequence[int], rows: Mapping[int, str]) -> None:
    content = {"shape": list(shape), "rows": [rows.get(row) for row in range(shape[0])]}
    atomic_write_text(path, json.dumps(content))


def _read_rows(path: Path, image_shape: Sequence[int]) -> list[str | None]:
    """What names the pixels of each row of a pack, None where it is not written; nothing where it differs."""
    try:
        content = json.loads(path.read_text())
        rows: list[str | None] = content["rows"]
        return rows if content["shape"] == [len(rows), *image_shape] else []
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []


def _remove(pack: Path) -> None:
    pack.unlink(missing_ok=True)
    _rows_of(pack).unlink(missing_ok=True)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() == _HEADER


def _is_temp(path: Path) -> bool:
    return path.name.startswith(TEMP_PREFIX)


def _last_use(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


@contextmanager
def _held_alone(path: Path) -> Iterator[bool]:
    """Whether no process uses a pack; within the block none begins to. One that is gone is used by none."""
    with ExitStack() as held:
        try:
            file = held.enter_context(path.open("rb+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            yield True
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_used(path: Path) -> bool:
    with _held_alone(path) as is_free:
        return not is_free


def _remove_unused(path: Path) -> bool:
    """Removes a pack unless some process uses it, and says whether it is gone."""
    with _held_alone(path) as is_free:
        if is_free:
            _remove(path)
        return is_free
