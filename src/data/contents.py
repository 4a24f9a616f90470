"""What a folder holds: images by format, DICOM series, tables, arrays, and files that are not read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..utils.cli import command, counted
from ..utils.config_fields import EXCLUDE
from ..utils.tables import TABLE_ENDINGS
from . import dicom
from .image_files import Exclude, SkippedFiles, image_files

_MOST_FILES = 200_000
_MOST_NAMES = 50  # tables
_SERIES_FILES = 500  # DICOM files whose tags are read
_TAGS = ("SeriesInstanceUID", "PatientID", "Modality")
_ARRAYS = ".npz"


@dataclass(frozen=True)
class DicomSummary:
    """The tags of a sample of the DICOM files.

    Attributes:
        files: How many DICOM files there are.
        read: How many were read.
        series: Different SeriesInstanceUIDs.
        patients: Different PatientIDs.
        modalities: Values of Modality, such as CT.
    """

    files: int
    read: int
    series: int
    patients: int
    modalities: tuple[str, ...]

    def describe(self) -> str:
        """Return a phrase for the user."""
        part = f" (of {self.read} of {self.files} files)" * (self.read < self.files)
        kinds = f", modality {', '.join(self.modalities)}" if self.modalities else ""
        return f"{self.series} DICOM series of {counted(self.patients, 'patient')}{kinds}{part}"


@dataclass(frozen=True)
class Contents:
    """The files below a folder.

    Attributes:
        root: The folder.
        images: Paths of the images relative to the root, sorted.
        formats: Number of images by ending; DICOM files without one are counted as such.
        dicom: The DICOM files, None if there are none.
        unread: Number of files that are not read, by kind.
        tables: Names of tables in the folder and in its subfolders.
        arrays: Names of ``.npz`` files in the same places.
        is_complete: Whether all files were listed, not only the first ones.
    """

    root: Path
    images: tuple[str, ...]
    formats: Counter[str]
    dicom: DicomSummary | None
    unread: Counter[str]
    tables: tuple[str, ...]
    arrays: tuple[str, ...]
    is_complete: bool

    def describe(self) -> list[str]:
        """Return one phrase for each kind of content."""
        images = [f"{count} {kind}" for kind, count in self.formats.most_common()]
        series = [self.dicom.describe()] if self.dicom else []
        unread = [f"{count} {kind} (not read)" for kind, count in self.unread.most_common()]
        more = [] if self.is_complete else [f"and more than {_MOST_FILES:,} images"]
        return [*images, *series, *unread, *self.tables[:5], *self.arrays[:5], *more]


def survey(root: Path) -> Contents:
    """List what a folder holds, without decoding anything and within limits.

    Raises:
        DataError: A folder cannot be listed.
    """
    skipped = SkippedFiles()
    found = list(islice(image_files(root, root, Exclude(EXCLUDE), skipped), _MOST_FILES + 1))
    keys = sorted(key for _, key in found[:_MOST_FILES])
    formats = Counter(_format(key) for key in keys)
    unread: Counter[str] = Counter()
    for (kind, _), count in skipped.unread.items():
        unread[kind] += count
    arrays = _named(root, (_ARRAYS,))
    if not unread[_ARRAYS] > len(arrays):
        del unread[_ARRAYS]
    is_complete = len(found) <= _MOST_FILES
    series = _read_series(root, [key for key in keys if _format(key) == "DICOM"])
    return Contents(
        root, tuple(keys), formats, series, unread, _named(root, TABLE_ENDINGS), arrays, is_complete
    )


def describe_contents(root: Path) -> str:
    """Return a sentence for error messages: what a folder holds, and the command that looks closer."""
    closer = f"{command('inspect')} {root} shows what is there and a config to start with"
    try:
        found = survey(root).describe()
    except DataError:
        return closer
    return f"found there: {', '.join(found) or 'no images and no tables'}; {closer}"


def spread(items: Sequence[str], most: int) -> list[str]:
    """Return at most so many items, evenly spaced."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), most)).astype(int).tolist()
    return [items[i] for i in chosen]


def _format(key: str) -> str:
    ending = Path(key).suffix.lower()
    return "DICOM" if not ending or ending[1:].isdigit() or ending in dicom.SUFFIXES else ending


def _named(root: Path, endings: tuple[str, ...]) -> tuple[str, ...]:
    places = islice(chain(root.glob("*"), root.glob("*/*")), _MOST_FILES)
    names = (path.relative_to(root).as_posix() for path in places if path.suffix.lower() in endings)
    return tuple(sorted(islice(names, _MOST_NAMES)))


def _read_series(root: Path, keys: list[str]) -> DicomSummary | None:
    if not keys:
        return None
    chosen = spread(keys, _SERIES_FILES)
    tags = [dicom.read_tags(root / key, _TAGS) for key in chosen]
    series, patients, modalities = (sorted({tag[i] for tag in tags} - {""}) for i in range(3))
    return DicomSummary(len(keys), len(chosen), len(series), len(patients), tuple(modalities))
