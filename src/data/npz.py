"""The arrays of an ``.npz``, and the MedMNIST layout."""

import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.io import open_regular
from ..utils.limits import ARRAY_BYTES, IMAGE_PIXELS, NPZ_DIRECTORY, NPZ_IMAGES, Limit
from .listing import SPLITS, UNKNOWN, Listing, Sample, order_classes
from .name_checks import is_like_split, name_splits
from .pixels import DecodedImage, Header, Pixels, check_limit

_SUFFIX = ".npy"
_HEADER = 20_000  # bytes of an array's header; numpy itself reads up to 10,000 characters
_DEFLATED = 1032  # of what zlib has compressed, at most so many times as much comes out
_SLACK = 1000
_IMAGES, _LABELS = "images", "labels"


ArrayHeader = tuple[tuple[int, ...], np.dtype[np.generic]]
"""Shape and data type of an array."""


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of an open ``.npz``, loaded on access by one descriptor and never unpickled.

    Raises ValueError if an array does not match its header, or exceeds a limit.
    """

    def __init__(self, file: BinaryIO) -> None:
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise ValueError("a single array; expected an .npz with train_images, train_labels, ...")
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

    def describe(self, name: str) -> ArrayHeader:
        """Read the header of an array and check that the array can be read, without allocating it."""
        entry = self._entries[name]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} has a compression that numpy does not use")
        most = entry.compress_size * (_DEFLATED if entry.compress_type else 1) + _SLACK
        if entry.compress_size > self._size or entry.file_size > most:
            raise ValueError(f"{name} cannot have the {entry.file_size:,} bytes that its header claims")
        with self._archive.open(entry) as stream:
            (shape, dtype), start = _read_header(stream.read(_HEADER))
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != entry.file_size - start:
            raise ValueError(
                f"{name} holds {entry.file_size - start:,} bytes, and its header says {shape} of {dtype}, "
                f"which is {size:,}"
            )
        _check(name, ARRAY_BYTES, size)
        free = psutil.virtual_memory().available + psutil.swap_memory().free
        if size > free:
            raise ValueError(f"{name} needs {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
        return shape, dtype


class _Pieces:
    """A file with a limit on single reads: the header of a zip directory may claim any size."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read some bytes within the limit."""
        _check("", NPZ_DIRECTORY, size)
        return self._file.read(size)


def _check(name: str, limit: Limit, amount: int) -> None:
    if excess := limit.excess(amount):
        raise ValueError(f"refused as too large: {name}{': ' if name else ''}{excess}")


def _read_header(start: bytes) -> tuple[ArrayHeader, int]:
    """Return the shape and data type of an array, and the length of its header."""
    stream = io.BytesIO(start)
    version = npy.read_magic(stream)
    # Version 3.0 differs from 2.0 only in UTF-8 field names, and images have no fields.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return (shape, dtype), stream.tell()


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """Open an ``.npz``; convert every error, also while its arrays are read, to `DataError`.

    Raises:
        DataError: The file or an array cannot be read.
    """
    try:
        with open_regular(path) as file:
            yield Arrays(file)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on damaged files
        raise DataError(f"{path}: neither a folder of images nor an .npz that can be read: {error}") from None


def list_npz(path: Path, modality: str, positive_class: str | None) -> Listing:
    """List a MedMNIST file for training; it names no modality, so any tag is accepted.

    Raises:
        DataError: The file is not an ``.npz``, lacks train or val, or holds other arrays than uint8 images
            and integer labels.
    """
    with open_arrays(path) as arrays:
        splits = _splits(arrays, path)
        images = {name: images_of(arrays, path, f"{name}_images") for name in splits}
        labels = {name: labels_of(arrays, path, f"{name}_labels", len(images[name])) for name in splits}
    names = [str(label) for label in sorted({int(label) for values in labels.values() for label in values})]
    if len(names) < 2:
        raise DataError(f"{path}: labels are {', '.join(names) or 'none'}; expected two or more")
    classes = order_classes(names, positive_class)

    samples = tuple(
        Sample(str(path), f"{name}/{row:07d}", classes.index(str(label)), None, split)
        for name, split in splits.items()
        for row, label in enumerate(labels[name])
    )
    return listing_of_arrays(path, modality, classes, samples, images)


def _splits(arrays: Arrays, path: Path) -> dict[str, str]:
    """Map the prefixes of array names to splits."""
    starts = {name.rpartition("_")[0] for name in arrays if name.lower().endswith(("_images", "_labels"))}
    named = {name: f"array {name}_images" for name in sorted(starts) if is_like_split(name)}
    found = name_splits(named, str(path))
    missing = {split: split for split in SPLITS[:2] if split not in found.values()}  # refused by its name
    return dict(sorted((found | missing).items(), key=lambda item: SPLITS.index(item[1])))


def listing_of_arrays(
    path: Path,
    modality: str,
    classes: tuple[str, ...],
    samples: tuple[Sample, ...],
    images: Mapping[str, Pixels],
) -> Listing:
    """Return a listing of images in memory; the key of a sample is ``{name in images}/{row}``."""

    def read(sample: Sample) -> DecodedImage:
        name, _, row = sample.key.partition("/")
        return DecodedImage(images[name][int(row)])

    def header(sample: Sample) -> Header:
        shape = images[sample.key.partition("/")[0]].shape
        return Header(shape[1], shape[2], 1 if len(shape) == 3 else 3)

    return Listing(path, modality, classes, samples, header, read, in_memory=True)


def read_again(sample: Sample) -> DecodedImage:
    """Read one image of an ``.npz`` that is no longer in memory.

    Raises:
        DataError: The file cannot be read, or its image is not found.
    """
    path, (name, _, row) = Path(sample.file), sample.key.partition("/")
    with open_arrays(path) as arrays:
        images = images_of(arrays, path, f"{name}_images" if f"{name}_images" in arrays else name)
    if int(row) >= len(images):
        raise DataError(f"{path}: no image {sample.key}")
    return DecodedImage(images[int(row)])


def _describe(arrays: Arrays, path: Path, name: str) -> ArrayHeader:
    if name not in arrays:
        there = ", ".join(arrays)[:500] or "none"
        raise DataError(f"{path}: no array {name} (as MedMNIST files have); found {there}")
    return arrays.describe(name)


def images_of(arrays: Arrays, path: Path, name: str) -> Pixels:
    """Return the images of one array; its header is checked before it is read.

    Raises:
        DataError: The array is missing, or not uint8 ``(N, H, W)`` or ``(N, H, W, 3)``.
    """
    shape, dtype = _describe(arrays, path, name)
    is_gray, is_rgb = len(shape) == 3, len(shape) == 4 and shape[-1] == 3
    if dtype != np.uint8 or not (is_gray or is_rgb) or not math.prod(shape):
        raise DataError(
            f"{path}: {name} has shape {shape} and type {dtype}; expected uint8 (N, H, W) or (N, H, W, 3)"
        )
    check_limit(f"{path}: {name}", IMAGE_PIXELS, shape[1] * shape[2])
    if excess := NPZ_IMAGES.excess(shape[0]):
        raise DataError(f"{path}: {name}: refused as too large: {excess}")
    return arrays[name].view(np.uint8)


def labels_of(arrays: Arrays, path: Path, name: str, count: int) -> NDArray[np.int64]:
    """Return the labels of one array, ``(count,)``.

    Raises:
        DataError: The array is missing, or not one integer per image.
    """
    shape, dtype = _describe(arrays, path, name)
    if not np.issubdtype(dtype, np.integer) or shape not in ((count,), (count, 1)):
        raise DataError(
            f"{path}: {name} has shape {shape} and type {dtype}; expected one whole number for each of the "
            f"{count} images (of several labels for each image, choose one)"
        )
    labels = arrays[name].reshape(-1).astype(np.int64)
    if (labels < 0).any():
        raise DataError(
            f"{path}: {name} holds {labels.min()}, which means a missing label; remove these images, "
            "or number the classes from 0"
        )
    return labels


def list_unlabeled_npz(path: Path, modality: str, classes: tuple[str, ...]) -> Listing:
    """List all images of an ``.npz`` for inference; labels are optional.

    Raises:
        DataError: No array is named as images, or one cannot be read.
    """
    with open_arrays(path) as arrays:
        keys = [name for name in arrays if name == _IMAGES or name.endswith(f"_{_IMAGES}")]
        if not keys:
            raise DataError(
                f"{path}: no array named {_IMAGES} or such as test_{_IMAGES}; found "
                f"{', '.join(arrays)[:500] or 'none'}"
            )
        images = {_stem(name): images_of(arrays, path, name) for name in keys}
        samples = [sample for name in keys for sample in _samples_of(arrays, path, name, images, classes)]
    return listing_of_arrays(path, modality, classes, tuple(samples), images)


def _samples_of(
    arrays: Arrays, path: Path, name: str, images: Mapping[str, Pixels], classes: tuple[str, ...]
) -> Iterator[Sample]:
    own, count = f"{name.removesuffix(_IMAGES)}{_LABELS}", len(images[_stem(name)])
    labels: Iterable[int] = labels_of(arrays, path, own, count) if own in arrays else [UNKNOWN] * count
    for row, label in enumerate(labels):
        known = classes.index(str(label)) if str(label) in classes else UNKNOWN
        yield Sample(str(path), f"{_stem(name)}/{row:07d}", known, None, None)


def _stem(name: str) -> str:
    return name.removesuffix(f"_{_IMAGES}")
