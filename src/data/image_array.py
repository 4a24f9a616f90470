"""Decoded images in a ``.npy`` file, read row by row and verified by checksums."""

import math
import os
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..utils.io import write_at
from .pixels import Pixels

FILE_FACTS = np.dtype([("channels", "<i4"), ("height", "<i4"), ("width", "<i4"), ("bits", "<i4")])
"""What is known of an image's file before it is rendered."""
CHECKSUM = np.dtype("<u4")
"""CRC-32 of an image; the checksums of all images follow the last image in the file."""


@dataclass(frozen=True)
class ImageOffsets:
    """Byte offsets of the pixels and of the checksum of an image in a file."""

    pixels: int
    checksum: int

    @classmethod
    def of_row(cls, row: int, shape: tuple[int, ...], start: int) -> Self:
        """Return the offsets of a row of images ``(N, C, S, S)``, the first of which is at ``start``."""
        size = math.prod(shape[1:])
        return cls(start + row * size, start + shape[0] * size + row * CHECKSUM.itemsize)

    def write(self, file: int, image: bytes) -> None:
        """Write an image with its checksum to an open file."""
        write_at(file, image, self.pixels)
        write_at(file, zlib.crc32(image).to_bytes(CHECKSUM.itemsize, "little"), self.checksum)


@dataclass(eq=False)
class ImageArray:
    """uint8 images ``(N, C, S, S)`` of a ``.npy`` file that stays open for as long as this object lives.

    The file is read, not mapped: a page of a truncated file or a failing disk would end the process with
    SIGBUS, whereas a read raises an error. An image is verified when it is first read.

    Attributes:
        file: The file; a lock held on it is released when it is closed.
        shape: ``(N, C, S, S)``.
        start: Byte offset of the first image.
        checksums: CRC-32 of each image, ``(N,)``; None if the file has none.
        decode_again: Function that decodes a row from its source, for damaged images.
        files: `FILE_FACTS` of each image, ``(N,)``; None if it is not from files.
        key_of: Function that returns the path of a row's file, relative to the root.
    """

    file: IO[bytes]
    shape: tuple[int, ...]
    start: int
    checksums: NDArray[np.uint32] | None = None
    decode_again: Callable[[int], Pixels] | None = None
    files: NDArray[np.void] | None = None
    key_of: Callable[[int], str] = str
    _is_unchecked: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)
        self._is_unchecked = np.full(self.shape[0], self.checksums is not None)

    @classmethod
    def of_file(cls, file: IO[bytes]) -> Self:
        """Read the header of an open ``.npy`` file.

        Raises:
            ValueError: The header is missing or damaged, or the file is shorter than the header states.
        """
        file.seek(0)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # NumPy's parser raises several kinds for a damaged header
            raise ValueError(f"the header is damaged: {error}") from None
        if dtype != np.uint8 or os.fstat(file.fileno()).st_size < file.tell() + math.prod(shape):
            raise ValueError("the file is cut off, or holds something else")
        if hasattr(os, "posix_fadvise"):  # else the kernel reads megabytes of neighbors with each image
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        start = file.tell()
        file.seek(math.prod(shape), os.SEEK_CUR)
        sums = np.frombuffer(file.read(shape[0] * CHECKSUM.itemsize), CHECKSUM)
        return cls(file, shape, start, sums if len(sums) == shape[0] else None)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Read images; one that is damaged is decoded again.

        Args:
            rows: Rows to read, ``(B,)``.
            out: ``(B, C, S, S)`` to fill, each image in one piece; None for new memory.

        Returns:
            ``out``.

        Raises:
            DataError: The file has become shorter, the disk failed, or an image is damaged and cannot be
                decoded again.
        """
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        size = math.prod(self.shape[1:])
        offsets = (self.start + rows * size).tolist()
        if hasattr(os, "posix_fadvise"):  # what is not in memory is then fetched all at once
            for offset in offsets:
                os.posix_fadvise(self.file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)
        try:
            for offset, image in zip(offsets, out, strict=True):
                if os.preadv(self.file.fileno(), [image], offset) < size:
                    self._read_rest(memoryview(image).cast("B"), offset)
        except OSError as error:
            raise self._failure(f"cannot be read ({error.strerror})") from None
        for place in np.flatnonzero(self._is_unchecked[rows]).tolist():
            self._check(int(rows[place]), out[place])
        return out

    def _check(self, row: int, image: NDArray[np.uint8]) -> None:
        """Compare an image with its checksum; replace a damaged one, here and in the file."""
        assert self.checksums is not None
        if zlib.crc32(image.data) != self.checksums[row]:
            if self.decode_again is None:
                raise self._failure("is damaged")
            image[:] = self.decode_again(row)
            # The folder may be read-only: then the next process decodes the image again.
            with suppress(OSError), Path(self.file.name).open("rb+", buffering=0) as file:
                ImageOffsets.of_row(row, self.shape, self.start).write(file.fileno(), image.tobytes())
        self._is_unchecked[row] = False

    def _read_rest(self, image: memoryview, offset: int) -> None:
        """Read the rest of an image, because a read may return fewer bytes than requested."""
        done = 0
        while done < len(image):
            count = os.preadv(self.file.fileno(), [image[done:]], offset + done)
            if count == 0:
                raise self._failure("was cut off while it was in use")
            done += count

    def _failure(self, what: str) -> DataError:
        message = f"the cache of decoded images {what}"
        what_next = (
            "check the disk and start again; --resume continues the run, and damaged files are rebuilt"
        )
        return DataError(f"{self.file.name}: {message}; {what_next}", public=f"{message}; {what_next}")


class Images(Protocol):
    """Samples that are read in batches, from disk or from memory."""

    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, S, S)``."""

    def read(self, positions: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Read samples into main memory, uint8 ``(B, C, S, S)``; see `ImageSource.read`."""

    def key(self, position: int) -> str:
        """Return the name of a sample: the path of its file, or its number."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Samples in the order of a split or of a folder: images of one modality, or of several as channels.

    Attributes:
        arrays: The decoded images of each of M modalities.
        rows: int64 ``(N, M)``, the row of each sample in each array.
    """

    arrays: tuple[ImageArray, ...]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, S, S)``, the channels of all modalities together."""
        side = self.arrays[0].shape[2]
        return sum(array.shape[1] for array in self.arrays), side, side

    @property
    def nbytes(self) -> int:
        """Bytes of all samples."""
        return len(self) * int(np.prod(self.image_shape))

    def files(self) -> list[NDArray[np.void]]:
        """Return `FILE_FACTS` of the samples, ``(N,)`` for each modality."""
        columns = zip(self.arrays, self.rows.T, strict=True)
        return [array.files[rows] for array, rows in columns if array.files is not None]

    def key(self, position: int, modality: int = 0) -> str:
        """Return the path of a sample's file, relative to the root."""
        return self.arrays[modality].key_of(int(self.rows[position, modality]))

    def read(self, positions: NDArray[np.int64], out: Tensor | None = None) -> Tensor:
        """Read samples into main memory.

        Args:
            positions: Samples to read, ``(B,)``.
            out: uint8 ``(B, C, S, S)`` to fill; None for new memory.

        Raises:
            DataError: A file has become shorter, or the disk failed.
        """
        images = torch.empty(len(positions), *self.image_shape, dtype=torch.uint8) if out is None else out
        first, memory = 0, images.numpy()
        for column, array in enumerate(self.arrays):
            after = first + array.shape[1]
            array.read(self.rows[positions, column], memory[:, first:after])
            first = after
        return images
