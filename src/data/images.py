"""What every kind of image file comes to: values in its own units, and how they become 8 bits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.errors import DataError
from src.utils.io import open_regular
from src.utils.limits import IMAGE_BYTES, IMAGE_PIXELS, Limit

Pixels = NDArray[np.uint8]
"""``(H, W)`` gray or ``(H, W, 3)`` RGB."""

Range = tuple[float, float]
"""Low and high, both included."""


OWN_LEVELS = "DICOM with a look-up table, SIGMOID, a threshold or functional groups for its gray levels"
"""What earlier versions read wrongly only without ``data.window``; see `Picture.corrected`."""


class BadImage(DataError):  # noqa: N818 -- reads as what it is
    """One image cannot be used; the message names its file.

    Attributes:
        lasting: Whether it is the content that is bad, so that trying again is of no use.
    """

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message, public="an image cannot be read")
        self.lasting = lasting


class Header(NamedTuple):
    """What a file says of its image.

    Attributes:
        height: In pixels.
        width: In pixels.
        channels: 1 or 3.
        patient: The patient that the file itself names, "" without.
        format: Such as ``PNG``, "" for an image that is in no file of its own.
        bits: Of each sample.
    """

    height: int
    width: int
    channels: int
    patient: str = ""
    format: str = ""
    bits: int = 8


@dataclass(frozen=True)
class Picture:
    """One decoded image.

    Attributes:
        values: ``(H, W)`` gray in the file's own units (HU, or raw), or uint8 ``(H, W, 3)`` RGB.
        full: What the values could be; None for plain 8-bit pixels, which no window changes.
        own: The window that the file itself asks for, None without.
        inverted: Whether low values are bright (DICOM's MONOCHROME1).
        no_window: Why the file's own gray levels cannot be shown, so that a window has to be configured; ""
            if they can.
        levels: The gray levels that the file itself asks for by other means than a window, before they are
            inverted; None without.
        levels_name: What tells these means from others, "" without.
        corrected: In what earlier versions read the file wrongly.
    """

    values: NDArray[Any]
    full: Range | None = None
    own: Range | None = None
    inverted: bool = False
    no_window: str = ""
    levels: Pixels | None = None
    levels_name: str = ""
    corrected: tuple[str, ...] = ()

    @property
    def content(self) -> bytes:
        """What makes the image the one it is, whatever window it is seen through; to be hashed."""
        kind = "" if self.full is None else f"{self.values.dtype}{self.inverted}"
        return f"{kind}{self.values.shape}".encode() + np.ascontiguousarray(self.values).tobytes()


def applied_window(own: Range | None, full: Range | None, configured: Range | None) -> Range | None:
    """The window that an image is seen through: the configured one, its own, or its full range."""
    return None if full is None else configured or own or full


def to_8_bits(picture: Picture, configured: Range | None) -> Pixels:
    """The picture as it is seen: ``low`` and below black, ``high`` and above white, linear between.

    Args:
        picture: The picture.
        configured: The window asked for; None takes the picture's own, else its full range.

    Raises:
        BadImage: None is configured, and the file's own gray levels cannot be shown.
    """
    if configured is None and picture.no_window:
        raise BadImage(picture.no_window, lasting=False)  # another run may configure one
    if configured is None and picture.levels is not None:
        return 255 - picture.levels if picture.inverted else picture.levels
    window = applied_window(picture.own, picture.full, configured)
    if window is None:
        pixels: Pixels = picture.values
        return pixels
    low, high = window
    # In place and in float32, for an image of a scanner may have tens of millions of pixels.
    scaled = picture.values.astype(np.float32)
    scaled -= low
    scaled *= 255 / (high - low)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    seen = scaled.astype(np.uint8)
    return 255 - seen if picture.inverted else seen


def resize(pixels: Pixels, size: int, channels: int) -> Pixels:
    """The image at ``size`` x ``size`` with ``channels`` channels.

    The whole image is kept (no crop: a lesion may lie at the edge), so one that is not square is
    stretched. Pillow's bilinear filter widens with the reduction, so shrinking does not alias.

    Returns:
        uint8 array ``(channels, size, size)``.
    """
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def check_pixels(path: object, width: int, height: int) -> None:
    """Refuses an image of too many pixels before they are decoded.

    Raises:
        BadImage: There are too many.
    """
    check_limit(path, IMAGE_PIXELS, width * height)


def check_limit(path: object, limit: Limit, amount: int) -> None:
    """Refuse an image that exceeds a limit.

    Raises:
        BadImage: It does; not for good, because the limit may be raised.
    """
    if excess := limit.excess(amount):
        raise BadImage(f"{path}: refused as too large: {excess}", lasting=False)


@contextmanager
def open_image(path: Path) -> Iterator[BinaryIO]:
    """Open an image file, which must be a regular file of bounded size.

    Raises:
        BadImage: It is too large.
        OSError: It is missing, not a regular file, or cannot be opened.
    """
    with open_regular(path) as file:
        check_limit(path, IMAGE_BYTES, os.fstat(file.fileno()).st_size)
        yield file
