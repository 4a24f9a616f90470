"""A folder of packs: arrays of decoded images, bounded in size, the least recently used going first.

A pack ``{name}.npy`` holds uint8 images ``(N, C, S, S)`` and is mapped into memory, not loaded. While
a process has one mapped it holds a shared lock on the file, which ends with the process however it
ends; so whoever needs room can tell which packs nobody uses.
"""

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.utils.io import TEMP_PREFIX, file_lock

GIGABYTE = 1_000_000_000

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

    def find(self, name: str) -> NDArray[np.uint8] | None:
        """Maps the pack of this name, None where there is none; from now on it counts as used."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                os.utime(path)
                return _mapped(file)
        except FileNotFoundError:
            return None
        except ValueError:  # damaged: it is made again
            path.unlink(missing_ok=True)
            return None

    @contextmanager
    def new(self, key: str, shape: tuple[int, int, int, int]) -> Iterator["NewPack"]:
        """Makes room for a pack and yields it to be filled; without `NewPack.keep` nothing is left.

        Args:
            key: Tells apart those that are made at the same time; the caller's lock makes it its own.
            shape: ``(N, C, S, S)``, N being the most that it will hold.

        Raises:
            DataError: It is larger than the limit, or what else is there is in use.
        """
        temp = self.folder / f"{TEMP_PREFIX}{key}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with file_lock(self.folder / ".lock"):
                size = _HEADER + math.prod(shape)
                self._make_room(size, temp)
                file = temp.open("wb+")
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(size)  # what others see as taken, long before it is written
            with file:
                yield NewPack(self, file, temp, shape[1:])
        finally:
            temp.unlink(missing_ok=True)

    def _make_room(self, size: int, temp: Path) -> None:
        sizes = {path: _size(path) for path in self.folder.glob("*.npy") if path != temp}
        if size > self.limit:  # before anything is removed in vain
            raise self._no_room(size, 0)
        # What a killed process left half-written goes in any case, and first.
        for path in sorted(sizes, key=lambda path: (not _is_temp(path), _last_use(path))):
            is_needed = sum(sizes.values()) + size > self.limit
            if (is_needed or _is_temp(path)) and _remove_unused(path):
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
    """A pack that is being written; `keep` gives it its name."""

    packs: PackFolder
    file: IO[bytes]
    temp: Path
    image_shape: tuple[int, ...]
    count: int = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """Appends one image, ``(C, S, S)``.

        Plain writes, no mapping: on a full disk a write fails with an error, a mapped page with SIGBUS.
        """
        if self.count == 0:
            self.file.seek(_HEADER)
        self.file.write(image.tobytes())
        self.count += 1

    def keep(self, name: str) -> NDArray[np.uint8]:
        """Finishes the pack, gives it its name, and maps it."""
        self.file.truncate(self.file.tell() if self.count else _HEADER)
        self.file.seek(0)
        _write_header(self.file, (self.count, *self.image_shape))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.temp.replace(self.packs._path(name))
        fcntl.flock(self.file, fcntl.LOCK_SH)
        return _mapped(self.file)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() == _HEADER


def _mapped(file: IO[bytes]) -> NDArray[np.uint8]:
    """Maps an open pack; the lock on the file holds for as long as the array lives."""
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # Read-only: a private writable mapping would count against memory, however large the pack.
    return np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


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


def _remove_unused(path: Path) -> bool:
    """Removes a pack unless some process uses it, and says whether it is gone."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink(missing_ok=True)
    return True
