"""What the images of a training are like, so that images of another kind are noticed later."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from ..utils.cli import warn
from .image_array import Images, ImageSource
from .pixels import Range

KEY = "data_profile"
"""Key in checkpoints, and in the metadata of logged models."""

_PERCENTILES = {"5th percentile": 5, "median": 50, "95th percentile": 95}
"""Of the gray levels of one image: its dark, middle and bright parts."""
_ENDS = (0.5, 99.5)  # percentiles over the images
_MOST, _BATCH = 2048, 256
_GRID = 64  # pixels of an image along a side that are read at least, evenly spaced
_PLAIN_BITS = 8
_MARGIN, _SMALL_SAMPLE, _LEAST = 0.4, 15, 16
"""Margin on both sides of a range of gray levels: this share of the range, plus this number divided by the
number of training images, but at least so many levels. Measured: at most 2 % of random halves of BreastMNIST
and the demo are then reported, and their inverted images are found from 50 training images on."""
_FEW = 0.02  # such a share of images outside of the range of gray levels is not reported


@dataclass(frozen=True)
class ImageProfile:
    """Training images of one modality.

    Attributes:
        images: Number of images that the gray levels are from.
        channels: Numbers of channels that occur in the files.
        bits: Numbers of bits per sample that occur in the files.
        sides: Shortest and longest side of the files in pixels.
        grays: Lowest and highest value (without the outermost images) of the 5th, 50th and 95th percentile of
            an image's gray levels, as the network gets them, 0 to 255.
    """

    images: int
    channels: tuple[int, ...]
    bits: tuple[int, ...]
    sides: tuple[int, int]
    grays: tuple[Range, ...]


_PROFILES = TypeAdapter(tuple[ImageProfile, ...])


def read_profiles(value: object) -> tuple[ImageProfile, ...]:
    """Return the recorded profiles of a model; none if it is of an earlier version."""
    try:
        return () if value is None else _PROFILES.validate_python(value)
    except ValidationError:
        warn(f"the model's record of its training images ({KEY}) is damaged; images are not compared with it")
        return ()


def profiles_of(images: ImageSource) -> tuple[ImageProfile, ...]:
    """Return the profile of each modality of training images."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(np.int64)
    lows, highs = np.percentile(_gray_levels(images, chosen), _ENDS, axis=0)
    return tuple(
        ImageProfile(
            len(chosen),
            tuple(np.unique(files["channels"]).tolist()),
            tuple(np.unique(files["bits"]).tolist()),
            (int(_sides(files).min()), int(_sides(files).max())),
            tuple(zip(low.tolist(), high.tolist(), strict=True)),
        )
        for files, low, high in zip(images.files(), lows, highs, strict=True)
    )


def differences(images: Images, profiles: Sequence[ImageProfile], modalities: Sequence[str]) -> list[str]:
    """Return a sentence for each kind of images that training did not have, with its number and first file.

    Args:
        images: The images; those in memory are not compared, since no file states their kind.
        profiles: The training images of each modality; empty if they are not known.
        modalities: The names of the modalities.
    """
    if not isinstance(images, ImageSource) or len(profiles) != len(images.arrays) or not len(images):
        return []
    grays = _gray_levels(images, np.arange(len(images)))
    notes = []
    for column, (files, profile) in enumerate(zip(images.files(), profiles, strict=True)):
        name = f"{modalities[column]}: " if len(profiles) > 1 else ""
        compared = (*_unlike_files(files, profile), _unlike_grays(grays[:, column], profile))
        for what, is_unlike, seen in compared:
            if is_unlike.any():
                first = int(is_unlike.argmax())
                detail = seen and f" ({seen})"
                count = f"{is_unlike.sum()} of {len(images)}"
                notes.append(f"{name}{what}: {count}, the first is {images.key(first, column)}{detail}")
    return notes


Kind = tuple[str, NDArray[np.bool_], str]
"""What the images are, which are, and what the first one is like."""


def _unlike_files(files: NDArray[np.void], profile: ImageProfile) -> Iterator[Kind]:
    colors = {1: "gray", 3: "in color"}
    what = f"images {colors[4 - profile.channels[0]]}, unlike all training images"
    yield what, ~np.isin(files["channels"], profile.channels), ""
    is_deep = files["bits"] > _PLAIN_BITS
    known = {bits > _PLAIN_BITS for bits in profile.bits}
    what = f"images of {'8 bits' if True in known else 'more than 8 bits'}, unlike all training images"
    yield what, ~np.isin(is_deep, list(known)), ""
    (low, high), sides = profile.sides, _sides(files)
    is_far = (sides[:, 0] < low / 2) | (sides[:, 1] > high * 2)
    height, width = (files[side][is_far.argmax()] for side in ("height", "width"))
    what = (
        f"images smaller than half or larger than twice the training images ({low} to {high} pixels a side)"
    )
    yield what, is_far, f"{width} x {height}"


def _unlike_grays(grays: NDArray[np.float64], profile: ImageProfile) -> Kind:
    """Compare the gray levels ``(N, 3)``."""
    low, high = np.array(profile.grays, dtype=np.float64).T
    margin = np.maximum((high - low) * (_MARGIN + _SMALL_SAMPLE / profile.images), _LEAST)
    excess = np.maximum(low - margin - grays, grays - high - margin)
    is_unlike = (excess > 0).any(axis=1)
    if is_unlike.mean() <= _FEW:
        is_unlike[:] = False
    first = int(is_unlike.argmax())
    worst = int(excess[first].argmax())
    name, span = list(_PERCENTILES)[worst], f"{low[worst]:.0f} to {high[worst]:.0f}"
    seen = f"{name} of its gray levels {grays[first, worst]:.0f}, in training {span}"
    return "images darker or brighter than the training images", is_unlike, seen


def _sides(files: NDArray[np.void]) -> NDArray[np.int64]:
    """Return the shorter and the longer side of each file, ``(N, 2)``."""
    return np.sort(np.stack([files["height"], files["width"]], axis=1).astype(np.int64), axis=1)


def _gray_levels(images: ImageSource, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the percentiles of the gray levels of each image, ``(N, M, 3)`` for M modalities."""
    step = max(1, images.image_shape[1] // _GRID)
    ends = np.cumsum([array.shape[1] for array in images.arrays])[:-1]
    found = []
    for start in range(0, len(positions), _BATCH):
        pixels = images.read(positions[start : start + _BATCH]).numpy()[..., ::step, ::step]
        parts = [part.mean(axis=1, dtype=np.float32) for part in np.split(pixels, ends, axis=1)]
        flat = np.stack([part.reshape(len(part), -1) for part in parts], axis=1)
        found.append(np.moveaxis(np.percentile(flat, list(_PERCENTILES.values()), axis=2), 0, 2))
    return np.concatenate(found)
