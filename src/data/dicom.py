"""DICOM reader (pydicom): one image per file, gray in the file's units (HU for CT) or 8-bit color."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..utils.io import open_regular
from ..utils.limits import IMAGE_PIXELS, IMAGE_VALUES
from .dicom_gray import check_high_bit, decode_gray, text_of, used_bits
from .dicom_parser import BARE_BYTES, DicomFile, check_palette, check_pixel_data, is_bare
from .name_checks import normalize_patient
from .pixels import DecodedImage, Header, ImageError, check_limit, open_image

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})

_MAGIC_AT, _MAGIC = 128, b"DICM"
_GRAY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_PALETTE = "PALETTE COLOR"
_JPEG_2000 = frozenset({"YBR_ICT", "YBR_RCT"})
_COLOR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422"}) | _JPEG_2000
_HEADER_TAGS = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsStored",
    "BitsAllocated",
    "PatientID",
)
_IMAGE_TAGS = (
    *_HEADER_TAGS,
    "PlanarConfiguration",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PresentationLUTShape",
    *(
        f"{kind}{color}PaletteColorLookupTable{what}"
        for kind, what in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for color in ("Red", "Green", "Blue", "Alpha")
    ),
)
_MAX_GRAY_BITS = 16

# pydicom warns about deviations from the standard; unreadable files are reported one by one here.
warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def is_dicom(path: Path) -> bool:
    """Return whether the content of a file is DICOM; False if it cannot be read."""
    try:
        with open_regular(path) as file:
            start = file.read(BARE_BYTES)
            return start[_MAGIC_AT:].startswith(_MAGIC) or is_bare(start)
    except OSError:
        return False


@contextmanager
def _as_image_error(path: Path) -> Iterator[None]:
    """Convert every error of a bad file to `ImageError`."""
    from pydicom.errors import InvalidDicomError

    try:
        yield
    except (ImageError, MemoryError):
        raise
    except InvalidDicomError:
        raise ImageError(f"{path}: not a DICOM file (no DICM prefix)") from None
    except RecursionError:
        raise ImageError(f"{path}: its sequences are nested too deeply") from None
    except OSError as error:
        raise ImageError(f"{path}: damaged or unreadable: {error}", lasting=error.errno is None) from None
    except Exception as error:  # pydicom's parsers raise a dozen kinds on damaged files
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ImageError(f"{path}: damaged or unreadable: {reason}") from None


def read_header(path: Path) -> Header:
    """Read size, channels and patient of a DICOM file, without its pixels.

    Raises:
        ImageError: The file is not DICOM, or no image of a supported kind is in it.
    """
    with _as_image_error(path), open_image(path) as file:
        return _header(path, DicomFile(path, file).read_header(_HEADER_TAGS))


def read_modality(path: Path) -> str:
    """Return the Modality of a DICOM file, such as CT or DX; "" if it cannot be read."""
    return read_tags(path, ("Modality",))[0]


def read_tags(path: Path, keywords: tuple[str, ...]) -> tuple[str, ...]:
    """Return the text of some elements of a DICOM file; "" for each that cannot be read."""
    try:
        with _as_image_error(path), open_image(path) as file:
            dataset = DicomFile(path, file).read_header(keywords)
            return tuple(text_of(dataset, keyword) for keyword in keywords)
    except ImageError:
        return ("",) * len(keywords)


def _header(path: Path, dataset: "Dataset") -> Header:
    if "Rows" not in dataset or "Columns" not in dataset:
        raise ImageError(f"{path}: holds no image (it may be a report, a plan or a waveform)")
    height, width, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.get("BitsStored") or 8)
    check_limit(path, IMAGE_PIXELS, width * height)
    frames = int(dataset.get("NumberOfFrames") or 1)
    check_limit(path, IMAGE_VALUES, width * height * frames * int(dataset.get("SamplesPerPixel") or 1))
    if frames > 1:
        raise ImageError(f"{path}: holds {frames} frames; export each slice as a file of its own")
    _check_photometric(path, dataset)
    is_gray = dataset.PhotometricInterpretation in _GRAY
    if is_gray and bits > _MAX_GRAY_BITS:
        raise ImageError(f"{path}: pixels of {bits} bits are not supported; convert it to 16 bits")
    if not is_gray and int(dataset.get("BitsAllocated") or 8) > 8 and not _is_palette(dataset):
        raise ImageError(f"{path}: color of more than 8 bits is not supported; convert it to 8 bits")
    patient = normalize_patient(str(dataset.get("PatientID") or ""))
    return Header(height, width, 1 if is_gray else 3, patient, "DICOM", bits)


def _check_photometric(path: Path, dataset: "Dataset") -> None:
    """Refuse a missing, unknown or contradictory PhotometricInterpretation; normalize its spelling."""
    photometric = text_of(dataset, "PhotometricInterpretation")
    if not photometric:
        raise ImageError(f"{path}: has no PhotometricInterpretation; add one, such as MONOCHROME2 or RGB")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if photometric not in _GRAY | _COLOR | {_PALETTE}:
        raise ImageError(
            f"{path}: PhotometricInterpretation {photometric} is not supported; convert it to RGB"
        )
    if samples != (3 if photometric in _COLOR else 1):
        raise ImageError(
            f"{path}: {photometric} with SamplesPerPixel {samples} is contradictory; correct one"
        )
    dataset.PhotometricInterpretation = photometric


def _pixel_bytes(dataset: "Dataset") -> int:
    """Return the size in bytes of one decoded frame."""
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
    return int(dataset.Rows) * int(dataset.Columns) * samples * math.ceil(bits / 8)


def _is_palette(dataset: "Dataset") -> bool:
    return bool(dataset.PhotometricInterpretation == _PALETTE)


def read_image(path: Path) -> DecodedImage:
    """Decode a DICOM file.

    Gray values are rescaled by slope and intercept, or by the modality look-up table.

    Returns:
        float32 gray values with their range and the file's own window, or uint8 RGB.

    Raises:
        ImageError: The file is damaged or without an image, or its transfer syntax cannot be decoded here.
    """
    with _as_image_error(path), open_image(path) as file:
        content = DicomFile(path, file)
        dataset = content.read_header(_IMAGE_TAGS)
        header, pixel_bytes = _header(path, dataset), _pixel_bytes(dataset)
        of_frame = content.add_pixels(dataset, pixel_bytes)
        if "PixelData" not in dataset:
            raise ImageError(f"{path}: PixelData is missing")
        check_pixel_data(path, dataset, pixel_bytes)
        check_palette(path, dataset)
        for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
            content.first_item(dataset, keyword)  # check the limits before pydicom parses all of it
        stored = _stored_pixels(path, dataset)
        if header.channels == 1:
            return decode_gray(path, dataset, stored, of_frame)
        if not _is_palette(dataset):
            return DecodedImage(stored)
        is_swapped = not dataset.file_meta.TransferSyntaxUID.is_little_endian
        corrected = ("big-endian DICOM with a palette",) * is_swapped
        return DecodedImage(_palette_colors(path, dataset, stored), corrected=corrected)


def _stored_pixels(path: Path, dataset: "Dataset") -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    check_high_bit(path, dataset)
    photometric, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
    if photometric in _COLOR and bits != 8:
        raise ImageError(f"{path}: color of {bits} bits is not supported; convert it to 8 bits")
    if photometric in _JPEG_2000 and "JPEG 2000" not in syntax.name:
        raise ImageError(f"{path}: {photometric} without JPEG 2000 is not supported; convert it to RGB")
    # `used_bits` clears unused bits, and refuses a wrong BitsStored.
    dataset.pixel_array_options(correct_unused_bits=False)
    try:
        return np.asarray(dataset.pixel_array)
    except Exception:  # each decoder of pydicom raises other errors
        if not syntax.is_compressed:
            raise
        raise ImageError(
            f"{path}: damaged, or its transfer syntax, {syntax.name}, cannot be decoded here; if other "
            "programs show it, convert it to an uncompressed one (dcmdjpeg, gdcmconv --raw)",
            lasting=False,  # a decoder may be installed later
        ) from None


def _palette_colors(path: Path, dataset: "Dataset", stored: NDArray[Any]) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    if not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        # pydicom reads the palette as little-endian.
        for color in ("Red", "Green", "Blue", "Alpha"):
            element = f"{color}PaletteColorLookupTableData"
            if element in dataset:
                dataset[element].value = np.frombuffer(dataset[element].value, ">u2").byteswap().tobytes()
    count, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    count = count or 2**16
    # Clipped to the table: pydicom computes positions in the data type of its entries.
    places = np.clip(used_bits(path, dataset, stored, None).astype(np.int32), first, first + count - 1)
    colors = apply_color_lut(places, dataset)[..., :3]
    if colors.dtype == np.uint8 and count > 2**8:
        raise ImageError(f"{path}: a palette of {count} colors of 8 bits is not supported; convert it to RGB")
    return (colors >> 8 if colors.dtype == np.uint16 else colors).astype(np.uint8)
