"""Find image files in folders, and read each with the reader for its format."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import DataError
from . import dicom, pillow_images
from .listing import Sample
from .pixels import DecodedImage, Header

SUFFIXES = pillow_images.SUFFIXES | dicom.SUFFIXES

ENDINGS = tuple(SUFFIXES)

_LOOKED_AT = 20  # files whose Modality is read


def is_image(path: str) -> bool:
    """Return whether a file is an image, by its ending or by the DICOM magic bytes.

    Scanners and archives name DICOM files without an ending, or by numbers (``1.2.840.113619``).
    """
    if path.lower().endswith(ENDINGS):  # the common case, without a Path object
        return True
    suffix = Path(path).suffix
    return (suffix[1:].isdigit() or not suffix) and dicom.is_dicom(Path(path))


def read_header(sample: Sample) -> Header:
    """Read size, channels and patient of a file, without its pixels.

    Raises:
        ImageError: The file cannot be read.
    """
    path = Path(sample.file)
    header: Header = _reader(path).read_header(path)
    return header


def read_image(sample: Sample) -> DecodedImage:
    """Decode a file.

    Raises:
        ImageError: The file cannot be read.
    """
    path = Path(sample.file)
    image: DecodedImage = _reader(path).read_image(path)
    return image


def dicom_modalities(samples: Sequence[Sample]) -> frozenset[str]:
    """Return the DICOM Modality values of a sample of the files, such as CT."""
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), _LOOKED_AT)).astype(int).tolist()
    paths = [Path(samples[i].file) for i in chosen]
    return frozenset(dicom.read_modality(path) for path in paths if _reader(path) is dicom) - {""}


def _reader(path: Path) -> ModuleType:
    suffix = path.suffix.lower()
    if suffix in pillow_images.SUFFIXES:
        return pillow_images
    return dicom if suffix in dicom.SUFFIXES or dicom.is_dicom(path) else pillow_images


_MOST_UNREAD = 0.1
_STEM = "{stem}"
# Files that are obviously not images; they are not reported.
_OTHER_NAMES = frozenset({"dicomdir", "readme", "license", "thumbs.db", "desktop.ini", "ehthumbs.db"})
_OTHER_ENDINGS = re.compile(
    r"\.(txt|[ct]sv|xml|json|ya?ml|md|pdf|html?|xlsx?|docx?|rtf|log|ini|db|py|ipynb|sh|md5|sha256|lnk|url|"
    r"inf|exe|dll|jar|ico|bat|css|js)"
)
# Endings that may be shown in a message; others may be part of a patient's name.
_SHOWN_ENDINGS = re.compile(
    r"\.(nii|nii\.gz|np[yz]|mat|h5|hdf5|mh[ad]|nrrd|raw|hdr|img|svs|ndpi|mrxs|czi|zip|tar|tar\.gz|gz|7z|rar|"
    r"hei[cf]|avif|jxl|svg|eps|psd|mp4|avi|mov|pt|pkl|tfrecord|part)"
)


class Exclude:
    """The glob patterns of ``data.exclude``, matched with the name of a file or folder in any case.

    ``{stem}`` stands for the name of an image in the same folder: ``{stem}_mask.*`` matches
    ``a_mask.png`` beside ``a.jpg``.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._plain = [pattern for pattern in patterns if _STEM not in pattern]
        self._beside = [pattern for pattern in patterns if _STEM in pattern]
        self._is_plain = _any_of(f"({translate(pattern)})" for pattern in self._plain)
        self._is_beside = _any_of(
            translate(pattern).replace(re.escape(_STEM), "(.+)", 1) for pattern in self._beside
        )

    def plain(self, names: Iterable[str]) -> dict[str, str]:
        """Map excluded names to their pattern, for patterns that depend on the name alone."""
        match = self._is_plain.match
        return {
            name: self._plain[found.lastindex - 1]
            for name in names
            if (found := match(name)) and found.lastindex
        }

    def beside(self, names: Sequence[str]) -> dict[str, str]:
        """Map excluded names to their pattern, for patterns that refer to another file of the folder."""
        match = self._is_beside.match
        matches = [(name, found) for name in names if (found := match(name))]
        if not matches:
            return {}
        stems = {name.rpartition(".")[0] for name in names}
        return {
            name: self._beside[found.lastindex - 1]
            for name, found in matches
            if found.lastindex and found[found.lastindex] in stems
        }


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns) or r"(?!)", re.IGNORECASE)


@dataclass
class SkippedFiles:
    """Counts of the files that are not listed.

    Attributes:
        taken: Listed images by class.
        unread: Files that are not read as images, by kind and class.
        excluded: Images and folders excluded by ``data.exclude``, by pattern and kind.
        links: Links to folders that are listed already, or that form a cycle.
        empty: Class folders without images.
        stray: Images outside of class folders.
    """

    taken: Counter[str] = field(default_factory=Counter)
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)
    excluded: Counter[tuple[str, str]] = field(default_factory=Counter)
    links: int = 0
    empty: list[str] = field(default_factory=list)
    stray: int = 0

    def leave(self, name: str, pattern: str, *, is_folder: bool) -> None:
        """Count a folder or an image that a pattern excludes."""
        if is_folder or is_image_name(name):
            self.excluded[pattern, "folder" if is_folder else "image"] += 1

    def check(self, where: str) -> None:
        """Raise a `DataError` if a class loses more than a tenth of its files."""
        lost: Counter[str] = Counter()
        for (_, name), count in self.unread.items():
            lost[name] += count
        for name, count in lost.items():
            if count > _MOST_UNREAD * (count + self.taken[name]):
                raise DataError(
                    f"{where}: {count} of {count + self.taken[name]} files of class {name} are not read as "
                    f"images ({_listed(self._kinds())}); convert them, such as to PNG, move them away, or "
                    "leave them out with data.exclude, a list of patterns such as '*.npy'"
                )

    def _kinds(self) -> list[str]:
        classes: dict[str, list[str]] = {}
        totals: Counter[str] = Counter()
        for (kind, name), count in sorted(self.unread.items()):
            totals[kind] += count
            classes.setdefault(kind, []).extend([f"{name}: {count}"] * bool(name))
        return [
            f"{count} {kind}" + f" ({', '.join(classes[kind])})" * bool(classes[kind])
            for kind, count in totals.most_common()
        ]

    def notes(self, where: str) -> tuple[str, ...]:
        """Return notes on skipped files for the user, without file names, which may identify patients."""
        excluded = [
            f"{count} {what}{'s' * (count > 1)} {pattern}"
            for (pattern, what), count in sorted(self.excluded.items())
        ]
        reports = {
            "left out by data.exclude": excluded,
            "files that are not read as images": self._kinds(),
            "links to folders that are listed already or form a cycle": [str(self.links)] * bool(self.links),
            "folders of classes without an image": self.empty,
            "images outside of class folders, which have no class": [str(self.stray)] * bool(self.stray),
        }
        return tuple(f"{where}: {what}: {_listed(found)}" for what, found in reports.items() if found)


def _listed(parts: list[str], most: int = 10) -> str:
    return ", ".join(parts[:most]) + f" and {len(parts) - most} more" * (len(parts) > most)


def image_files(
    folder: Path, root: Path, exclude: Exclude, skipped: SkippedFiles, name: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield the path of each image file below a folder and its path relative to ``root``.

    Links to folders are followed, each folder once. Skipped files are counted for the class ``name``.

    Raises:
        DataError: A folder cannot be listed.
    """
    # Strings: a Path object per file would take longer than reading the folder.
    start = str(folder / "_")[:-1]
    linked = [(start, (folder / "_").relative_to(root).as_posix()[:-1])]
    listed: set[Path] = set()
    above: set[Path] = set()
    while linked:
        path, key = linked.pop()
        real = Path(os.path.realpath(path))
        if real in above or not listed.isdisjoint({real, *real.parents}):
            skipped.links += 1
            continue
        listed.add(real)
        above.update(real.parents)
        waiting = [(path, key)]
        while waiting:
            path, key = waiting.pop()
            folders, links, names = entries_of(path, exclude, skipped)
            waiting += [(f"{path}{below}/", f"{key}{below}/") for below in sorted(folders)]
            linked += [(f"{path}{below}/", f"{key}{below}/") for below in sorted(links, reverse=True)]
            for file in _images(path, names, exclude, skipped, name):
                yield path + file, key + file


def entries_of(path: str, exclude: Exclude, skipped: SkippedFiles) -> tuple[list[str], list[str], list[str]]:
    """Return the folders, links to folders, and files of a folder that are not excluded by their names."""
    folders: list[str] = []
    links: list[str] = []
    names: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                kind = names if not entry.is_dir() else links if entry.is_symlink() else folders
                kind.append(entry.name)
    except OSError as error:
        raise unlisted(error) from None
    for kind in (folders, links, names):
        excluded = exclude.plain(kind)
        for name, pattern in excluded.items():
            skipped.leave(name, pattern, is_folder=kind is not names)
        if excluded:
            kind[:] = [name for name in kind if name not in excluded]
    return folders, links, names


def _images(path: str, names: list[str], exclude: Exclude, skipped: SkippedFiles, name: str) -> Iterator[str]:
    beside = exclude.beside(names)
    taken = 0
    for file in names:
        if file in beside:
            skipped.leave(file, beside[file], is_folder=False)
        elif is_image_name(file) or (not _is_other(file) and is_image(path + file)):
            taken += 1
            yield file
        elif not _is_other(file):
            skipped.unread[_kind(file), name] += 1
    skipped.taken[name] += taken


def is_image_name(name: str) -> bool:
    """Return whether the ending of a file is that of an image."""
    return name.lower().endswith(ENDINGS)


def _is_other(name: str) -> bool:
    lower = name.lower()
    return lower in _OTHER_NAMES or _OTHER_ENDINGS.fullmatch(lower, max(lower.rfind("."), 0)) is not None


def _kind(name: str) -> str:
    """Return the ending of a file that is not an image, unless it may name a patient."""
    parts = name.lower().split(".")
    endings = (f".{'.'.join(parts[-2:])}", f".{parts[-1]}") if len(parts) > 1 else ()
    if not endings or parts[-1].isdigit():
        return "without an ending"
    return next(filter(_SHOWN_ENDINGS.fullmatch, endings), "with another ending")


def unlisted(error: OSError) -> DataError:
    """Return the error for a folder that cannot be listed."""
    remedy = "make it readable for this user (ls -ld shows its owner and mode), or move it away"
    return DataError(
        f"{error.filename}: cannot be listed: {error.strerror}; {remedy}",
        public=f"a folder cannot be listed; {remedy}",
    )
