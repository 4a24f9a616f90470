"""One image file to one array of uint8 pixels."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from src.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})

Pixels = NDArray[np.uint8]
"""``(H, W)`` gray or ``(H, W, 3)`` RGB."""

_GRAY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})


# An image of more pixels is refused below; Pillow's own warning would only repeat it.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class BadImage(DataError):  # noqa: N818 -- reads as what it is
    """One image cannot be used; the message names its file.

    Attributes:
        lasting: Whether it is the content that is bad, so that trying again is of no use.
    """

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message, public="an image cannot be read")
        self.lasting = lasting


class Header(NamedTuple):
    """Native height and width in pixels, and channels (1 or 3)."""

    height: int
    width: int
    channels: int


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The opened image, with every way in which a file can be bad turned into `BadImage`."""
    try:
        with Image.open(path) as image:
            yield image
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(f"{path}: not an image that can be read (is it a text file, or empty?)") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path}: refused as too large: {error}") from None
    except OSError as error:
        # With a number it is the file system that failed, not the picture.
        raise BadImage(f"{path}: damaged or unreadable: {error}", lasting=error.errno is None) from None
    except Exception as error:  # Pillow's parsers raise a dozen kinds on damaged files
        raise BadImage(f"{path}: damaged or unreadable: {error}") from None


def read_header(path: Path) -> Header:
    """Size and channels of an image file, from its header.

    Raises:
        BadImage: It is no image, has several pages, or pixels of a kind that is not read.
    """
    with _opened(path) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
            raise BadImage(f"{path}: refused as too large: {image.width} x {image.height} pixels")
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            raise BadImage(f"{path}: holds {pages} pages; export each slice as a file of its own")
        if image.mode not in _GRAY_MODES | _COLOUR_MODES:
            raise BadImage(f"{path}: pixels of kind {image.mode!r} are not read; convert it to 8 or 16 bits")
        return Header(image.height, image.width, 1 if image.mode in _GRAY_MODES else 3)


def read_image(path: Path) -> Pixels:
    """Decodes an image file.

    Args:
        path: PNG, JPEG, TIFF or BMP; 16-bit gray is scaled from its full range to 8 bits.

    Returns:
        uint8 pixels, ``(H, W)`` where the file is gray, else ``(H, W, 3)``.

    Raises:
        BadImage: The file is damaged, no image, too large to be one, or of a kind that is not read.
    """
    header = read_header(path)
    with _opened(path) as image:
        if image.mode.startswith("I;16"):
            return np.round(np.asarray(image, dtype=np.uint16) / 257.0).astype(np.uint8)
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert("L" if header.channels == 1 else "RGB"))


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
