"""One image file: which reader takes it."""

from pathlib import Path
from types import ModuleType

from src.data import dicom, raster
from src.data.images import Header, Picture
from src.data.samples import Sample

SUFFIXES = raster.SUFFIXES | dicom.SUFFIXES


def is_image(path: Path) -> bool:
    """Whether a file in a folder of images is one of them: by its ending, or by DICOM's mark.

    Scanners and archives name DICOM files without an ending, or by numbers (``1.2.840.113619``).
    """
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or ((suffix[1:].isdigit() or not suffix) and dicom.is_dicom(path))


def read_header(sample: Sample) -> Header:
    """Size, channels and patient of a file, without its pixels.

    Raises:
        BadImage: It cannot be read.
    """
    header: Header = _reader(sample.file).read_header(sample.file)
    return header


def read_picture(sample: Sample) -> Picture:
    """Decodes a file.

    Raises:
        BadImage: It cannot be read.
    """
    picture: Picture = _reader(sample.file).read_picture(sample.file)
    return picture


def _reader(path: Path) -> ModuleType:
    suffix = path.suffix.lower()
    if suffix in raster.SUFFIXES:
        return raster
    return dicom if suffix in dicom.SUFFIXES or dicom.is_dicom(path) else raster
