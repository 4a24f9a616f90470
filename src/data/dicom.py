"""DICOM files, by pydicom: one image a file, gray in its units (HU for CT), or 8-bit colour."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from src.data.dicom_file import DicomFile, check_palette, check_pixel_data
from src.data.images import BadImage, Header, Picture, Range, check_limit, check_pixels, open_image
from src.utils.io import open_regular
from src.utils.limits import IMAGE_VALUES

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})

_MAGIC_AT, _MAGIC = 128, b"DICM"
_GRAY = frozenset({"MONOCHROME1", "MONOCHROME2"})
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
_PICTURE_TAGS = (
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
    *(
        f"{kind}{color}PaletteColorLookupTable{what}"
        for kind, what in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for color in ("Red", "Green", "Blue", "Alpha")
    ),
)
_MAX_GRAY_BITS = 16

# What these files deviate in concerns their maker; what cannot be read is told by file.
warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def is_dicom(path: Path) -> bool:
    """Whether a file says of itself that it is DICOM, whatever its name; False where it cannot be read."""
    try:
        with open_regular(path) as file:
            file.seek(_MAGIC_AT)
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns every way in which a file can be bad into `BadImage`."""
    from pydicom.errors import InvalidDicomError

    try:
        yield
    except (BadImage, MemoryError):
        raise
    except InvalidDicomError:
        raise BadImage(f"{path}: no DICOM file (its header lacks the mark DICM)") from None
    except RecursionError:
        raise BadImage(f"{path}: its sequences are nested too deeply") from None
    except OSError as error:
        raise BadImage(f"{path}: damaged or unreadable: {error}", lasting=error.errno is None) from None
    except Exception as error:  # pydicom's parsers raise a dozen kinds on damaged files
        raise BadImage(f"{path}: damaged or unreadable: {_first_line(error)}") from None


def read_header(path: Path) -> Header:
    """Size, channels and patient of a DICOM file, without its pixels.

    Raises:
        BadImage: It is no DICOM file, holds no image, or one of a kind that is not read.
    """
    with _told(path), open_image(path) as file:
        return _header(path, DicomFile(path, file).read_header(_HEADER_TAGS))


def _header(path: Path, dataset: "Dataset") -> Header:
    if "Rows" not in dataset or "Columns" not in dataset:
        raise BadImage(f"{path}: holds no image (it may be a report, a plan or a waveform)")
    height, width, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.get("BitsStored") or 8)
    check_pixels(path, width, height)
    frames = int(dataset.get("NumberOfFrames") or 1)
    check_limit(path, IMAGE_VALUES, width * height * frames * int(dataset.get("SamplesPerPixel") or 1))
    if frames > 1:
        raise BadImage(f"{path}: holds {frames} frames; export each slice as a file of its own")
    is_gray = dataset.get("PhotometricInterpretation") in _GRAY
    if is_gray and bits > _MAX_GRAY_BITS:
        raise BadImage(f"{path}: pixels of {bits} bits are not read; convert it to 16 bits")
    if not is_gray and int(dataset.get("BitsAllocated") or 8) > 8 and not _is_palette(dataset):
        raise BadImage(f"{path}: colour of more than 8 bits is not read; convert it to 8 bits")
    return Header(height, width, 1 if is_gray else 3, str(dataset.get("PatientID") or "").strip())


def _pixel_bytes(dataset: "Dataset") -> int:
    """Bytes of the decoded pixels of one frame."""
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
    return int(dataset.Rows) * int(dataset.Columns) * samples * math.ceil(bits / 8)


def _is_palette(dataset: "Dataset") -> bool:
    return bool(dataset.get("PhotometricInterpretation") == "PALETTE COLOR")


def read_picture(path: Path) -> Picture:
    """Decodes a DICOM file.

    Gray values are rescaled as the file says (slope and intercept, or a modality look-up table).

    Returns:
        float32 gray values with their range and the file's own window, or uint8 RGB.

    Raises:
        BadImage: The file is damaged, holds no image, or its transfer syntax cannot be decoded here.
    """
    with _told(path), open_image(path) as file:
        content = DicomFile(path, file)
        dataset = content.read_header(_PICTURE_TAGS)
        header, pixel_bytes = _header(path, dataset), _pixel_bytes(dataset)
        content.add_pixels(dataset, pixel_bytes)
        if "PixelData" not in dataset:
            raise BadImage(f"{path}: holds no pixels")
        check_pixel_data(path, dataset, pixel_bytes)
        check_palette(path, dataset)
        stored = _stored_pixels(path, dataset)
        return _gray(path, dataset, stored) if header.channels == 1 else _colour(dataset, stored)


def _stored_pixels(path: Path, dataset: "Dataset") -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        return np.asarray(dataset.pixel_array)
    except Exception:  # each of pydicom's decoders fails in its own way
        if not syntax.is_compressed:
            raise
        raise BadImage(
            f"{path}: damaged, or its transfer syntax, {syntax.name}, cannot be decoded here; if other "
            "programs show it, convert it to an uncompressed one (dcmdjpeg, gdcmconv --raw)",
            lasting=False,  # a decoder may be installed meanwhile
        ) from None


def _gray(path: Path, dataset: "Dataset", stored: NDArray[Any]) -> Picture:
    from pydicom.pixels.processing import apply_modality_lut

    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    ends = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if signed else [0, (1 << bits) - 1])
    # The same rescaling for the ends of the range; a look-up table takes what lies beyond it to its own.
    full = np.sort(np.asarray(apply_modality_lut(ends, dataset), dtype=np.float64))
    with np.errstate(over="ignore"):
        values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    if not (np.isfinite(full).all() and full[0] < full[-1] and np.isfinite(values).all()):
        raise BadImage(f"{path}: its rescale slope, intercept or look-up table gives no usable values")
    return Picture(
        values,
        full=(float(full[0]), float(full[-1])),
        own=own_window(dataset),
        inverted=dataset.PhotometricInterpretation == "MONOCHROME1",
    )


def own_window(dataset: "Dataset") -> Range | None:
    """The first window of a file as (low, high), None where it has none that is linear.

    Source: DICOM PS3.3, C.11.2.1.2 (functions LINEAR and LINEAR_EXACT). A look-up table and the
    function SIGMOID are no window, so such a file counts as without.
    """
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if center is None or width is None or function not in ("LINEAR", "LINEAR_EXACT"):
        return None
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return (center - width / 2, center + width / 2) if width > 0 and math.isfinite(center + width) else None


def _first(value: Any) -> float | None:  # noqa: ANN401 -- pydicom: nothing, one value, or several
    if value is None or value == "":
        return None
    values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    return float(values[0]) if values.size else None


def _colour(dataset: "Dataset", stored: NDArray[Any]) -> Picture:
    from pydicom.pixels.processing import apply_color_lut

    if _is_palette(dataset):
        stored = apply_color_lut(stored, dataset)
    if stored.dtype == np.uint16:  # a palette of 16 bits
        stored = stored >> 8
    return Picture(stored[..., :3].astype(np.uint8))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
