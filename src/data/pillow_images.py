"""Reader for PNG, JPEG, TIFF, BMP, WebP, GIF, JPEG 2000 and PGM files (Pillow)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from ..utils.limits import HINT, IMAGE_PIXELS
from .pixels import DecodedImage, Header, ImageError, check_limit, open_image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}) | frozenset(
    {".jpe", ".jfif", ".webp", ".gif", ".jp2", ".j2k", ".pgm", ".ppm"}
)

# Detected by content, since endings are often wrong. Others are disabled: EPS would run another program.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "JPEG2000", "WEBP")

_SHOWN_FORMATS = {"MPO": "JPEG", "DIB": "BMP"}

_16_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_GRAY_MODES = frozenset({"1", "L", "LA"}) | _16_BITS
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_FULL_16_BITS = (0.0, 65535.0)
_WHITE_IS_ZERO, _SIGNED = 0, 2

# An image of more pixels is refused below; Pillow's own warning would only repeat it.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; convert every error of a bad file to `ImageError`."""
    try:
        Image.MAX_IMAGE_PIXELS = IMAGE_PIXELS.value // 2  # Pillow refuses more than twice as many
        with open_image(path) as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: not an image that can be read (is it a text file, empty, or of a rare kind of "
            "pixels?); if other programs show it, convert it to PNG"
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: refused as too large: {error} {HINT}", lasting=False) from None
    except OSError as error:
        # With an errno the file system failed, not the image.
        raise ImageError(f"{path}: damaged or unreadable: {error}", lasting=error.errno is None) from None
    except Exception as error:  # Pillow's parsers raise a dozen kinds on damaged files
        raise ImageError(f"{path}: damaged or unreadable: {error}") from None


def read_header(path: Path) -> Header:
    """Read size and channels of an image file from its header.

    Raises:
        ImageError: The file is not an image, has several pages, or pixels of an unsupported kind.
    """
    with _opened(path) as image:
        return _header(path, image)


def _header(path: Path, image: Image.Image) -> Header:
    check_limit(path, IMAGE_PIXELS, image.width * image.height)
    # Not n_frames, for which Pillow reads through all pages of a TIFF. The further pictures of a phone's
    # JPEG (MPO: previews, depth, gain maps) are no pages; its first one is the image.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError(f"{path}: holds several pages; export each slice as a file of its own")
    if image.mode not in _GRAY_MODES | _COLOR_MODES:
        raise ImageError(
            f"{path}: pixels of kind {image.mode!r} are not supported; convert it to unsigned 8 or 16 bits"
        )
    _check_samples(path, image)
    return Header(
        image.height,
        image.width,
        1 if image.mode in _GRAY_MODES else 3,
        format=_SHOWN_FORMATS.get(image.format or "", image.format or ""),
        bits=16 if image.mode in _16_BITS else 8,
    )


def read_image(path: Path) -> DecodedImage:
    """Decode an image file.

    Returns:
        Upright uint8 pixels, gray or RGB, with transparent pixels in black; 16-bit gray as raw values.

    Raises:
        ImageError: The file is damaged, not an image, too large, or of an unsupported kind.
    """
    with _opened(path) as image:
        header = _header(path, image)
        is_white_zero = _tiff_tag(image, PHOTOMETRIC_INTERPRETATION) == (_WHITE_IS_ZERO,)
        corrected = _corrected(image, is_white_zero=is_white_zero)
        upright = ImageOps.exif_transpose(image)
        if image.mode in _16_BITS:
            values = _deep_values(upright)
            return DecodedImage(values, full=_FULL_16_BITS, inverted=is_white_zero, corrected=corrected)
        shown = _on_black(path, upright, "L" if header.channels == 1 else "RGB")
        return DecodedImage(np.asarray(shown), corrected=corrected)


def _corrected(image: Image.Image, *, is_white_zero: bool) -> tuple[str, ...]:
    """Return what earlier versions decoded incorrectly in an image."""
    is_deep = image.mode in _16_BITS
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    is_tiff = isinstance(image, TiffImageFile)
    is_plain_tiff = is_tiff and not is_deep and image.info.get("compression") == "raw"
    is_transparent = image.has_transparency_data and (is_deep or _alpha(image).getextrema()[0] != 255)
    found = {
        "16-bit image with an orientation": is_deep and orientation in range(2, 9),
        "uncompressed TIFF with an orientation of 5 to 8": is_plain_tiff and orientation in range(5, 9),
        "16-bit TIFF with WhiteIsZero": is_deep and is_white_zero,
        "image with transparent pixels": is_transparent,
    }
    return tuple(what for what, is_there in found.items() if is_there)


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _check_samples(path: Path, image: Image.Image) -> None:
    """Refuse samples that Pillow would change: it keeps the upper byte of 16-bit colors and drops signs."""
    if image.mode not in _16_BITS and _sample_bits(image) > 8:
        raise ImageError(
            f"{path}: color, or gray with transparency, of more than 8 bits is not supported; convert it to "
            "8 bits a channel, or to 16-bit gray without transparency"
        )
    if _SIGNED in _tiff_tag(image, SAMPLEFORMAT):
        raise ImageError(f"{path}: signed pixels are not supported; convert it to unsigned 8 or 16 bits")


def _sample_bits(image: Image.Image) -> int:
    """Return the bits per sample in the file; 8 for formats without more."""
    if isinstance(image, TiffImageFile):
        return max(_tiff_tag(image, BITSPERSAMPLE), default=1)
    # How Pillow is about to decode: "RGB;16B" (PNG), or ("RGB", 65535) with the largest value (PPM).
    how = [tile.args for tile in getattr(image, "tile", [])]
    if image.format == "PNG":
        return 16 if any(";16" in str(args) for args in how) else 8
    largest = [args[1] for args in how if image.format == "PPM" and isinstance(args, tuple)]
    return max(int(max(largest, default=0)).bit_length(), 8)


def _tiff_tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """Return the values of a TIFF tag, () for another format or a missing tag."""
    value = image.tag_v2.get(tag, ()) if isinstance(image, TiffImageFile) else ()
    return value if isinstance(value, tuple) else (value,)


def _deep_values(image: Image.Image) -> NDArray[np.uint16]:
    """Return 16-bit gray values; the transparent value of a PNG becomes 0."""
    values = np.array(image, dtype=np.uint16)
    transparent = image.info.get("transparency")
    if transparent is not None:
        values[values == transparent] = 0
    return values


def _on_black(path: Path, image: Image.Image, mode: str) -> Image.Image:
    """Return an image pasted on black: pixels under transparency are not meant to be visible."""
    if not image.has_transparency_data:
        return image.convert(mode)
    alpha = _alpha(image)
    if alpha.getextrema()[1] == 0:
        raise ImageError(f"{path}: all pixels are transparent; remove the transparency")
    black = Image.new(mode, image.size)
    black.paste(image.convert(mode), mask=alpha)
    return black
