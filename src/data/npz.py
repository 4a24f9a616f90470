"""MedMNIST ``.npz`` files: ``{split}_images`` and ``{split}_labels``, never a pickled object."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.limits import NPZ_IMAGES
from .arrays import Arrays, Shape, open_arrays
from .images import Header, Picture, Pixels, check_pixels
from .names import is_like_split, name_splits
from .samples import SPLITS, Listing, Sample, order_classes


def list_npz(path: Path, modality: str, positive_class: str | None) -> Listing:
    """Lists a MedMNIST file; it has no modality of its own, so any tag will do.

    Raises:
        DataError: It is no ``.npz``, lacks train or val, or holds something else than uint8 images
            and whole-number labels.
    """
    with open_arrays(path) as arrays:
        splits = _splits(arrays, path)
        images = {name: images_of(arrays, path, f"{name}_images") for name in splits}
        labels = {name: labels_of(arrays, path, f"{name}_labels", len(images[name])) for name in splits}
    names = [str(label) for label in sorted({int(label) for values in labels.values() for label in values})]
    if len(names) < 2:
        raise DataError(f"{path}: labels are {', '.join(names) or 'none'}; two or more are needed")
    classes = order_classes(names, positive_class)

    samples = tuple(
        Sample(str(path), f"{name}/{row:07d}", classes.index(str(label)), None, split)
        for name, split in splits.items()
        for row, label in enumerate(labels[name])
    )
    return listing_of_arrays(path, modality, classes, samples, images)


def _splits(arrays: Arrays, path: Path) -> dict[str, str]:
    """Map the beginnings of the names of arrays to the splits that they stand for.

    Raises:
        DataError: A name looks like that of a split, and it is open which.
    """
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
    """A listing of images in memory; the key of a sample is ``{name in images}/{row}``."""

    def read(sample: Sample) -> Picture:
        name, _, row = sample.key.partition("/")
        return Picture(images[name][int(row)])

    def header(sample: Sample) -> Header:
        shape = images[sample.key.partition("/")[0]].shape
        return Header(shape[1], shape[2], 1 if len(shape) == 3 else 3)

    return Listing(path, modality, classes, samples, header, read, in_memory=True)


def read_again(sample: Sample) -> Picture:
    """Read one image of an ``.npz`` that is no longer in memory.

    Raises:
        DataError: The file cannot be read, or has no such image.
    """
    path, (name, _, row) = Path(sample.file), sample.key.partition("/")
    with open_arrays(path) as arrays:
        images = images_of(arrays, path, f"{name}_images" if f"{name}_images" in arrays else name)
    if int(row) >= len(images):
        raise DataError(f"{path}: no image {sample.key}")
    return Picture(images[int(row)])


def _describe(arrays: Arrays, path: Path, name: str) -> Shape:
    if name not in arrays:
        there = ", ".join(arrays)[:500] or "none"
        raise DataError(f"{path}: no array {name} (as MedMNIST files have); there are: {there}")
    return arrays.describe(name)


def images_of(arrays: Arrays, path: Path, name: str) -> Pixels:
    """The images of one array, which is read only if it is one of images.

    Raises:
        DataError: It is missing, or not uint8 ``(N, H, W)`` or ``(N, H, W, 3)``.
    """
    shape, dtype = _describe(arrays, path, name)
    is_gray, is_rgb = len(shape) == 3, len(shape) == 4 and shape[-1] == 3
    if dtype != np.uint8 or not (is_gray or is_rgb) or not math.prod(shape):
        raise DataError(
            f"{path}: {name} has shape {shape} and type {dtype}; uint8 (N, H, W) or (N, H, W, 3) is needed"
        )
    check_pixels(f"{path}: {name}", shape[1], shape[2])
    if excess := NPZ_IMAGES.excess(shape[0]):
        raise DataError(f"{path}: {name}: refused as too large: {excess}")
    return arrays[name].view(np.uint8)


def labels_of(arrays: Arrays, path: Path, name: str, count: int) -> NDArray[np.int64]:
    """The labels of one array, ``(count,)``.

    Raises:
        DataError: It is missing, or not one whole number for each image.
    """
    shape, dtype = _describe(arrays, path, name)
    if not np.issubdtype(dtype, np.integer) or shape not in ((count,), (count, 1)):
        raise DataError(
            f"{path}: {name} has shape {shape} and type {dtype}; one whole number for each of the {count} "
            "images is needed (of several labels for each image, choose one)"
        )
    labels = arrays[name].reshape(-1).astype(np.int64)
    if (labels < 0).any():
        raise DataError(
            f"{path}: {name} holds {labels.min()}, which stands for a missing label; take these images out, "
            "or number the classes from 0"
        )
    return labels
