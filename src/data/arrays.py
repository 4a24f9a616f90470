"""The arrays of an ``.npz``: each is read only when it is asked for, if it is what its header says."""

import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import psutil
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.io import open_regular
from ..utils.limits import ARRAY_BYTES, NPZ_DIRECTORY, Limit

_SUFFIX = ".npy"
_HEADER = 20_000  # bytes of an array's header; numpy itself reads up to 10,000 characters
_DEFLATED = 1032  # of what zlib has compressed, at most so many times as much comes out
_SLACK = 1000


class Shape(NamedTuple):
    """What the header of an array says."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of an open ``.npz``; nothing is unpickled, and one descriptor is read throughout.

    Raises ValueError where an array is not what it says it is, or exceeds a limit.
    """

    def __init__(self, file: BinaryIO) -> None:
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise ValueError("a single array; an .npz with train_images, train_labels, ... is needed")
        self._size = os.fstat(file.fileno()).st_size
        self._archive = zipfile.ZipFile(_Pieces(file))
        entries = [(entry.filename.removesuffix(_SUFFIX), entry) for entry in self._archive.infolist()]
        repeated = [name for name, count in Counter(name for name, _ in entries).items() if count > 1]
        if repeated:
            raise ValueError(f"several arrays are named {repeated[0]!r}")
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> NDArray[Any]:
        self.describe(name)
        with self._archive.open(self._entries[name]) as stream:
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array

    def describe(self, name: str) -> Shape:
        """Read the header of an array and check that the array can be read; takes no memory for it."""
        entry = self._entries[name]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed in another way than numpy does")
        most = entry.compress_size * (_DEFLATED if entry.compress_type else 1) + _SLACK
        if entry.compress_size > self._size or entry.file_size > most:
            raise ValueError(f"{name} cannot have the {entry.file_size:,} bytes that the file says")
        with self._archive.open(entry) as stream:
            found, start = _read_header(stream.read(_HEADER))
        size = math.prod(found.shape) * found.dtype.itemsize
        if min(found.shape, default=0) < 0 or size != entry.file_size - start:
            raise ValueError(
                f"{name} holds {entry.file_size - start:,} bytes, and its header says {found.shape} of "
                f"{found.dtype}, which is {size:,}"
            )
        _check(name, ARRAY_BYTES, size)
        free = psutil.virtual_memory().available + psutil.swap_memory().free
        if size > free:
            raise ValueError(f"{name} needs {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
        return found


class _Pieces:
    """A file that is read in pieces only: a zip's directory may say to be as large as it likes."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read a piece."""
        _check("", NPZ_DIRECTORY, size)
        return self._file.read(size)


def _check(name: str, limit: Limit, amount: int) -> None:
    if excess := limit.excess(amount):
        raise ValueError(f"refused as too large: {name}{': ' if name else ''}{excess}")


def _read_header(start: bytes) -> tuple[Shape, int]:
    """Return what the header of an array says, and its length."""
    stream = io.BytesIO(start)
    version = npy.read_magic(stream)
    # Version 3.0 is 2.0 with names of fields in UTF-8, and images have no fields.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return Shape(shape, dtype), stream.tell()


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """Open an ``.npz``; what is wrong with it, also while its arrays are read, is a `DataError`.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_regular(path) as file:
            yield Arrays(file)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on damaged files
        raise DataError(f"{path}: neither a folder of images nor an .npz that can be read: {error}") from None
