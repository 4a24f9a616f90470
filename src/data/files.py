"""One image file: which reader takes it."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from . import dicom, raster
from .images import Header, Picture
from .samples import Sample

SUFFIXES = raster.SUFFIXES | dicom.SUFFIXES

ENDINGS = tuple(SUFFIXES)

_LOOKED_AT = 20  # files whose Modality is read


def is_image(path: str) -> bool:
    """Whether a file in a folder of images is one of them: by its ending, or by DICOM's mark.

    Scanners and archives name DICOM files without an ending, or by numbers (``1.2.840.113619``).
    """
    if path.lower().endswith(ENDINGS):  # the common case, without a Path object
        return True
    suffix = Path(path).suffix
    return (suffix[1:].isdigit() or not suffix) and dicom.is_dicom(Path(path))


def read_header(sample: Sample) -> Header:
    """Size, channels and patient of a file, without its pixels.

    Raises:
        BadImage: It cannot be read.
    """
    path = Path(sample.file)
    header: Header = _reader(path).read_header(path)
    return header


def read_picture(sample: Sample) -> Picture:
    """Decodes a file.

    Raises:
        BadImage: It cannot be read.
    """
    path = Path(sample.file)
    picture: Picture = _reader(path).read_picture(path)
    return picture


def dicom_modalities(samples: Sequence[Sample]) -> frozenset[str]:
    """Return the values of Modality that a few DICOM files of a listing name, such as CT."""
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), _LOOKED_AT)).astype(int).tolist()
    paths = [Path(samples[i].file) for i in chosen]
    return frozenset(dicom.read_modality(path) for path in paths if _reader(path) is dicom) - {""}


def _reader(path: Path) -> ModuleType:
    suffix = path.suffix.lower()
    if suffix in raster.SUFFIXES:
        return raster
    return dicom if suffix in dicom.SUFFIXES or dicom.is_dicom(path) else raster
