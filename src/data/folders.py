"""Folders of images: ``ROOT/{modality}/{train,val,test}/{class}/*`` or ``ROOT/{modality}/{class}/*``."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from ..errors import DataError
from .contents import describe_contents
from .image_files import (
    SUFFIXES,
    Exclude,
    SkippedFiles,
    entries_of,
    image_files,
    is_image_name,
    read_header,
    read_image,
    unlisted,
)
from .listing import UNKNOWN, Listing, Sample, order_classes
from .name_checks import check_classes, check_no_masks, is_like_split, name_splits, unify


@dataclass(frozen=True)
class NamePatterns:
    """Regular expressions for file names: group 1 of a match is the patient, or the image id.

    Attributes:
        patient_regex: For the patient, None if names do not hold it.
        image_id_regex: For the image id, None if names do not hold it.
        must_match: Whether to refuse a name that does not match, as training does.
    """

    patient_regex: str | None = None
    image_id_regex: str | None = None
    must_match: bool = True

    def patient(self, file: str) -> str | None:
        """Return the patient of a file, None if unknown; raise a DataError if the name has to match."""
        return self._find(self.patient_regex, "patient_regex", file)

    def image_id(self, file: str) -> str | None:
        """Return the image id of a file, None if unknown; raise a DataError if the name has to match."""
        return self._find(self.image_id_regex, "image_id_regex", file)

    def _find(self, pattern: str | None, setting: str, file: str) -> str | None:
        if pattern is None:
            return None
        match = re.search(pattern, file.rpartition("/")[2])
        if self.must_match and not (match and match[1]):
            raise DataError(
                f"{file}: its name does not match data.{setting}={pattern}",
                public=f"a file's name does not match data.{setting}={pattern}",
            )
        return match[1] if match else None


def list_folder(
    root: Path, modality: str, patterns: NamePatterns, excluded: Sequence[str], positive_class: str | None
) -> Listing:
    """List one modality of a folder for training.

    Args:
        root: The folder.
        modality: Name of its subfolder.
        patterns: Patterns for file names.
        excluded: Glob patterns of ``data.exclude``.
        positive_class: Class that becomes the last of two, None for alphabetical order.

    Raises:
        DataError: The layout is not supported, or fewer than two classes have images.
    """
    exclude, skipped = Exclude(excluded), SkippedFiles()
    if modality not in _folders(root):
        raise _no_modality(root, modality, exclude)
    base = root / modality
    splits = _splits(base, exclude, skipped)
    files = _files_by_class(root, base, list(splits), exclude, skipped)
    skipped.check(str(base))
    places = {name: f"folder {base / split / name}" for split, name in files}
    names = unify(places, "class", str(base))
    check_classes(places, str(base))
    check_no_masks(places, str(base))
    classes = _classes(sorted(set(names.values())), positive_class, base, skipped)
    labels = {spelling: classes.index(name) for spelling, name in names.items()}
    samples = (
        Sample(file, key, labels[name], patterns.patient(file), splits[split], patterns.image_id(file))
        for (split, name), found in files.items()
        for file, key in found
    )
    return listing_of_files(root, modality, classes, samples, skipped.notes(str(base)))


def listing_of_files(
    root: Path,
    modality: str,
    classes: tuple[str, ...],
    samples: Iterable[Sample],
    notes: tuple[str, ...] = (),
) -> Listing:
    """Return a listing of image files, sorted by key."""
    in_order = tuple(sorted(samples, key=attrgetter("key")))
    return Listing(root, modality, classes, in_order, read_header, read_image, notes=notes)


def _no_modality(root: Path, modality: str, exclude: Exclude) -> DataError:
    present = _folders(root, exclude)
    if any(is_like_split(name) and _folders(root / name, exclude) for name in present):
        whole = root if root.name else root.resolve()
        return DataError(
            f"{root}: holds {', '.join(present)}, where folders of modalities belong; if these are the "
            f"splits of one modality, start with --data {whole.parent} --modality {whole.name}"
        )
    found = f"modalities there: {', '.join(present)}" if present else "no folders found"
    message = (
        f"{root}: no modality {modality!r}; {found}; {describe_contents(root)}; choose one with --modality, "
        f"or put the folders of classes or splits into {root / modality}"
    )
    if tables := sorted(root.glob("*.csv")):
        message += f", or list the images in a manifest, if {tables[0].name} is one: --data {tables[0]}"
    return DataError(message)


def _folders(path: Path, exclude: Exclude | None = None) -> list[str]:
    try:
        found = sorted(
            entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise unlisted(error) from None
    skipped = exclude.plain(found) if exclude else {}
    return [name for name in found if name not in skipped]


def _splits(base: Path, exclude: Exclude, skipped: SkippedFiles) -> dict[str, str | None]:
    """Map the split folders to splits, or the folder itself to None if it holds classes.

    Images outside of the split folders are counted.
    """
    below = _folders(base, exclude)
    named = [name for name in below if is_like_split(name)]
    if not named:
        return {"": None}
    takes = "expected train, val and perhaps test, or one folder per class"
    if len(named) < len(below):
        others = ", ".join(name for name in below if name not in named)
        raise DataError(
            f"{base}: holds {', '.join(below)}; {takes}. Move {others} away, or leave it out "
            "with data.exclude"
        )
    splits = name_splits({name: f"folder {name}" for name in named}, str(base))
    if not {"train", "val"} <= set(splits.values()):
        raise DataError(
            f"{base}: holds {', '.join(below)}; {takes}. Move some patients to a folder for the split that "
            "is missing, or name the split of each image in a manifest.csv"
        )
    skipped.stray += sum(map(is_image_name, entries_of(f"{base}/", exclude, skipped)[2]))
    return dict(splits)


def _files_by_class(
    root: Path, base: Path, splits: list[str], exclude: Exclude, skipped: SkippedFiles
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return the image files of each (split, class) that has any, as (path, key) pairs."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for split in splits:
        for name in _class_folders(base / split, exclude, skipped):
            folder = base / split / name
            files = list(image_files(folder, root, exclude, skipped, name))
            if files:
                found[split, name] = files
            else:
                skipped.empty.append(f"{split}/{name}" if split else name)
    return found


def _class_folders(folder: Path, exclude: Exclude, skipped: SkippedFiles) -> list[str]:
    """Return the class folders; count images outside of them, and refuse split folders inside of them."""
    folders, links, names = entries_of(f"{folder}/", exclude, skipped)
    skipped.stray += sum(map(is_image_name, names))
    found = sorted(folders + links)
    for name in found:
        below = _folders(folder / name)
        if below and all(map(is_like_split, below)):
            raise DataError(
                f"{folder / name}: holds {', '.join(below)}, the splits of one class; put them above the "
                "classes: train/CLASS, val/CLASS, test/CLASS"
            )
    return found


def _classes(names: list[str], positive: str | None, base: Path, skipped: SkippedFiles) -> tuple[str, ...]:
    if not all(name.isprintable() for name in names):  # bytes that are not UTF-8 are not printable
        raise DataError(f"{base}: the name of a class is not text: {', '.join(map(repr, names))}")
    if len(names) < 2:
        found = (
            f"images of the class {names[0]!r} only"
            if names
            else f"no images in folders of classes ({', '.join(sorted(SUFFIXES))})"
        )
        why = "".join(f". {note}" for note in skipped.notes(str(base)))
        why += "" if names else f". {describe_contents(base)}"
        raise DataError(
            f"{base}: {found}; a classifier needs a folder of images for each of two classes or more: "
            f"{base.name}/CLASS/*{why}"
        )
    return order_classes(names, positive)


def unlabeled_sample(file: str, key: str, classes: tuple[str, ...], patterns: NamePatterns) -> Sample:
    """Return the sample of an image file; its label is the class that just one folder is named after."""
    named = [folder for folder in key.split("/")[:-1] if folder in classes]
    label = classes.index(named[0]) if len(named) == 1 else UNKNOWN
    return Sample(file, key, label, patterns.patient(file), None, patterns.image_id(file))


def list_unlabeled_folder(
    root: Path, modality: str, classes: tuple[str, ...], patterns: NamePatterns, excluded: Sequence[str]
) -> Listing:
    """List every image below a folder, or below its subfolder named as the modality, for inference."""
    base = root / modality if (root / modality).is_dir() else root
    skipped = SkippedFiles()
    files = image_files(base, root, Exclude(excluded), skipped)
    samples = [unlabeled_sample(file, key, classes, patterns) for file, key in files]
    return listing_of_files(root, modality, classes, samples, skipped.notes(str(base)))
