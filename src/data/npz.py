"""MedMNIST ``.npz`` files: ``{split}_images`` and ``{split}_labels``, never a pickled object."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.data.images import Header, Picture, Pixels
from src.data.samples import SPLITS, Listing, Sample, order_classes
from src.errors import DataError


def list_npz(path: Path, modality: str, positive_class: str | None) -> Listing:
    """Lists a MedMNIST file; it has no modality of its own, so any tag will do.

    Raises:
        DataError: It is no ``.npz``, lacks train or val, or holds something else than uint8 images
            and whole-number labels.
    """
    arrays = read_arrays(path)
    splits = [split for split in SPLITS if f"{split}_images" in arrays or split != "test"]
    images = {split: images_of(arrays, path, f"{split}_images") for split in splits}
    labels = {split: labels_of(arrays, path, f"{split}_labels", len(images[split])) for split in splits}
    names = [str(label) for label in sorted({int(label) for values in labels.values() for label in values})]
    if len(names) < 2:
        raise DataError(f"{path}: labels are {', '.join(names) or 'none'}; two or more are needed")
    classes = order_classes(names, positive_class)

    samples = tuple(
        Sample(str(path), f"{split}/{row:07d}", classes.index(str(label)), None, split)
        for split in splits
        for row, label in enumerate(labels[split])
    )
    return listing_of_arrays(path, modality, classes, samples, images)


def listing_of_arrays(
    path: Path,
    modality: str,
    classes: tuple[str, ...],
    samples: tuple[Sample, ...],
    images: Mapping[str, Pixels],
) -> Listing:
    """A listing of images in memory; the key of a sample is ``{name in images}/{row}``."""

    def read(sample: Sample) -> Picture:
        name, _, row = sample.key.partition("/")
        return Picture(images[name][int(row)])

    def header(sample: Sample) -> Header:
        shape = images[sample.key.partition("/")[0]].shape
        return Header(shape[1], shape[2], 1 if len(shape) == 3 else 3)

    return Listing(path, modality, classes, samples, header, read, in_memory=True)


def read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of the file; one that holds Python objects is refused, not unpickled.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(
                    f"{path}: a single array; an .npz with train_images, train_labels, ... is needed"
                )
            return {name: archive[name] for name in archive}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError) as error:
        raise DataError(f"{path}: neither a folder of images nor an .npz that can be read: {error}") from None


def read_again(sample: Sample) -> Picture:
    """Read one image of an ``.npz`` that is no longer in memory.

    Raises:
        DataError: The file cannot be read, or has no such image.
    """
    arrays, (name, _, row) = read_arrays(Path(sample.file)), sample.key.partition("/")
    images = arrays.get(f"{name}_images", arrays.get(name, np.empty(0)))
    if int(row) >= len(images):
        raise DataError(f"{sample.file}: no image {sample.key}")
    return Picture(images[int(row)])


def _array(arrays: Mapping[str, NDArray[np.generic]], path: Path, name: str) -> NDArray[np.generic]:
    if name not in arrays:
        raise DataError(
            f"{path}: no array {name} (as MedMNIST files have); there are: {', '.join(arrays) or 'none'}"
        )
    return arrays[name]


def images_of(arrays: Mapping[str, NDArray[np.generic]], path: Path, name: str) -> Pixels:
    """The images of one array.

    Raises:
        DataError: It is missing, or not uint8 ``(N, H, W)`` or ``(N, H, W, 3)``.
    """
    images = _array(arrays, path, name)
    is_gray, is_rgb = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (is_gray or is_rgb) or not images.size:
        raise DataError(
            f"{path}: {name} has shape {images.shape} and type {images.dtype}; "
            "uint8 (N, H, W) or (N, H, W, 3) is needed"
        )
    return images.view(np.uint8)


def labels_of(
    arrays: Mapping[str, NDArray[np.generic]], path: Path, name: str, count: int
) -> NDArray[np.int64]:
    """The labels of one array, ``(count,)``.

    Raises:
        DataError: It is missing, or not one whole number for each image.
    """
    labels = _array(arrays, path, name)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape not in ((count,), (count, 1)):
        raise DataError(
            f"{path}: {name} has shape {labels.shape} and type {labels.dtype}; "
            f"one whole number for each of the {count} images is needed"
        )
    return labels.reshape(-1).astype(np.int64)
