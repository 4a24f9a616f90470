"""Decoded images of any file format, and their conversion to 8-bit network input."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..utils.io import open_regular
from ..utils.limits import IMAGE_BYTES, Limit

Pixels = NDArray[np.uint8]
"""``(H, W)`` gray or ``(H, W, 3)`` RGB."""

Range = tuple[float, float]
"""Low and high, inclusive."""

LEGACY = "legacy"
"""Value of `data.fit` for runs from before this setting existed."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow converts RGB to gray


OWN_LEVELS = "DICOM with a look-up table, SIGMOID, a threshold or functional groups for its gray levels"
"""What earlier versions decoded incorrectly only without ``data.window``; see `DecodedImage.corrected`."""


class ImageError(DataError):
    """An image that cannot be used; the message names its file.

    Attributes:
        lasting: Whether the content is bad, so that retrying is pointless.
    """

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message, public="an image cannot be read")
        self.lasting = lasting


class Header(NamedTuple):
    """Header of an image file.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 or 3.
        patient: Patient named in the file, "" if none.
        format: Such as ``PNG``, "" for an image in an array.
        bits: Bits per sample.
    """

    height: int
    width: int
    channels: int
    patient: str = ""
    format: str = ""
    bits: int = 8


class Levels(NamedTuple):
    """Gray levels that a file defines by other means than a linear window, and a key for them."""

    pixels: Pixels
    name: str


@dataclass(frozen=True)
class DecodedImage:
    """One decoded image.

    Attributes:
        values: ``(H, W)`` gray in the file's own units (HU, or raw), or uint8 ``(H, W, 3)`` RGB.
        full: Range of possible values; None for plain 8-bit pixels, which no window changes.
        own: Window stored in the file, None if none.
        inverted: Whether low values are bright (DICOM's MONOCHROME1).
        no_window: Why the file's own gray levels cannot be applied, so that a window must be configured; ""
            if they can.
        levels: Gray levels that the file defines by other means than a window, before inversion, or None.
        corrected: What earlier versions decoded incorrectly.
    """

    values: NDArray[Any]
    full: Range | None = None
    own: Range | None = None
    inverted: bool = False
    no_window: str = ""
    levels: Levels | None = None
    corrected: tuple[str, ...] = ()

    @property
    def content(self) -> bytes:
        """Bytes that identify the image independently of the window, to be hashed."""
        kind = "" if self.full is None else f"{self.values.dtype}{self.inverted}"
        return f"{kind}{self.values.shape}".encode() + np.ascontiguousarray(self.values).tobytes()


@dataclass(frozen=True)
class ImageFormat:
    """Format of the network input.

    Attributes:
        size: Side in pixels.
        channels: 1 or 3.
        window: The configured window, None if none.
        fit: How an image is fitted to a square: `data.fit`.
    """

    size: int
    channels: int
    window: Range | None
    fit: str

    def changes(self, height: int, width: int) -> bool:
        """Return whether an image of this size is fitted differently from `LEGACY`."""
        return self.fit != LEGACY and (height, width) != (self.size, self.size)


def applied_window(own: Range | None, full: Range | None, configured: Range | None) -> Range | None:
    """Return the window of an image: the configured one, its own, or its full range."""
    return None if full is None else configured or own or full


def to_8_bits(decoded: DecodedImage, configured: Range | None) -> Pixels:
    """Return the windowed image: ``low`` and below black, ``high`` and above white, linear in between.

    Args:
        decoded: The image.
        configured: The configured window; None uses the image's own window, else its full range.

    Raises:
        ImageError: No window is configured, and the file's own gray levels cannot be applied.
    """
    scaled = _scaled(decoded, configured)
    if decoded.full is None:
        return scaled
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    seen = scaled.astype(np.uint8)
    return 255 - seen if decoded.inverted else seen


def _scaled(decoded: DecodedImage, configured: Range | None) -> NDArray[Any]:
    """Return plain pixels as they are, others in float32 with the window at 0 to 255, not yet clipped."""
    if configured is None and decoded.no_window:
        raise ImageError(decoded.no_window, lasting=False)  # another run may configure one
    if configured is None and decoded.levels is not None:
        return decoded.levels.pixels.astype(np.float32)
    window = applied_window(decoded.own, decoded.full, configured)
    if window is None:
        return decoded.values
    low, high = window
    # In place and in float32: an image may have tens of millions of pixels.
    scaled = decoded.values.astype(np.float32)
    scaled -= low
    scaled *= 255 / (high - low)
    return scaled


def render(decoded: DecodedImage, image_format: ImageFormat) -> Pixels:
    """Return the network input of an image: windowed, and fitted to a square.

    The whole image is kept (no crop: a lesion may be at the edge). It is resized in float, by Pillow's
    antialiased bilinear filter, and rounded once.

    Returns:
        uint8 array ``(channels, size, size)``.

    Raises:
        ImageError: No window is configured, and the file's own gray levels cannot be applied.
    """
    height, width = decoded.values.shape[:2]
    if not image_format.changes(height, width):
        return resize(to_8_bits(decoded, image_format.window), image_format.size, image_format.channels)
    size, longer = image_format.size, max(height, width)
    if image_format.fit == "pad":
        height, width = (max(1, round(side * size / longer)) for side in (height, width))
    else:
        height, width = size, size
    top, left = (size - height) // 2, (size - width) // 2
    seen = np.zeros((image_format.channels, size, size), np.uint8)
    for channel, plane in enumerate(_planes(decoded, image_format)):
        image = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
        rounded = np.rint(np.asarray(image)).clip(0, 255)
        seen[channel:, top : top + height, left : left + width] = rounded
    return seen


def _planes(decoded: DecodedImage, image_format: ImageFormat) -> Iterator[NDArray[np.float32]]:
    """Yield the channels of an image in float32 from 0 to 255, only one if they are equal."""
    values = _scaled(decoded, image_format.window)
    if decoded.full is not None:
        np.clip(values, 0, 255, out=values)
        yield 255 - values if decoded.inverted else values
    elif values.ndim == 2:
        yield values.astype(np.float32)
    elif image_format.channels == 1:
        yield values @ np.array(_LUMA, np.float32)
    else:
        yield from (values[..., channel].astype(np.float32) for channel in range(3))


def resize(pixels: Pixels, size: int, channels: int) -> Pixels:
    """Return the image as ``(channels, size, size)``, stretched, and rounded at each step."""
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def check_limit(path: object, limit: Limit, amount: int) -> None:
    """Raise an `ImageError` (not lasting, because the limit may be raised) if a limit is exceeded."""
    if excess := limit.excess(amount):
        raise ImageError(f"{path}: refused as too large: {excess}", lasting=False)


@contextmanager
def open_image(path: Path) -> Iterator[BinaryIO]:
    """Open an image file, which must be a regular file of bounded size.

    Raises:
        ImageError: It is too large.
        OSError: It is missing, not a regular file, or cannot be opened.
    """
    with open_regular(path) as file:
        check_limit(path, IMAGE_BYTES, os.fstat(file.fileno()).st_size)
        yield file
