"""PNG, JPEG, TIFF, BMP, WebP, GIF, JPEG 2000 and PGM files, by Pillow."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from src.data.images import BadImage, Header, Picture, check_pixels, open_image
from src.utils.limits import HINT, IMAGE_PIXELS

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}) | frozenset(
    {".jpe", ".jfif", ".webp", ".gif", ".jp2", ".j2k", ".pgm", ".ppm"}
)

# By content, for endings are often wrong. Pillow knows others, of which EPS would run another program.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "JPEG2000", "WEBP")

_16_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_GRAY_MODES = frozenset({"1", "L", "LA"}) | _16_BITS
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_FULL_16_BITS = (0.0, 65535.0)

# An image of more pixels is refused below; Pillow's own warning would only repeat it.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The opened image, with every way in which a file can be bad turned into `BadImage`."""
    try:
        Image.MAX_IMAGE_PIXELS = IMAGE_PIXELS.value // 2  # Pillow refuses more than twice as many
        with open_image(path) as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage(f"{path}: not an image that can be read (is it a text file, or empty?)") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{path}: refused as too large: {error} {HINT}", lasting=False) from None
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
        return _header(path, image)


def _header(path: Path, image: Image.Image) -> Header:
    check_pixels(path, image.width, image.height)
    # Not n_frames, for which Pillow reads through all pages of a TIFF.
    if getattr(image, "is_animated", False):
        raise BadImage(f"{path}: holds several pages; export each slice as a file of its own")
    if image.mode not in _GRAY_MODES | _COLOUR_MODES:
        raise BadImage(f"{path}: pixels of kind {image.mode!r} are not read; convert it to 8 or 16 bits")
    return Header(image.height, image.width, 1 if image.mode in _GRAY_MODES else 3)


def read_picture(path: Path) -> Picture:
    """Decodes an image file.

    Returns:
        uint8 pixels, gray or RGB; 16-bit gray in its raw values.

    Raises:
        BadImage: The file is damaged, no image, too large to be one, or of a kind that is not read.
    """
    with _opened(path) as image:
        header = _header(path, image)
        if image.mode in _16_BITS:
            return Picture(np.asarray(image, dtype=np.uint16), full=_FULL_16_BITS)
        upright = ImageOps.exif_transpose(image)
        return Picture(np.asarray(upright.convert("L" if header.channels == 1 else "RGB")))
