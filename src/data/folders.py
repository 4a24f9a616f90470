"""Folders of images: ``ROOT/{modality}/{train,val,test}/{class}/*`` or ``ROOT/{modality}/{class}/*``."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from ..errors import DataError
from ..utils.config import DataConfig
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
from .names import check_classes, check_no_masks, is_like_split, name_splits, unify
from .samples import UNKNOWN, Listing, Sample, order_classes


@dataclass(frozen=True)
class NamePatterns:
    """Patterns for file names: group 1 of each match is the patient, or the image id."""

    patient: re.Pattern[str] | None = None
    image_id: re.Pattern[str] | None = None


def list_folder(root: Path, modality: str, config: DataConfig, patterns: NamePatterns) -> Listing:
    """List one modality of a folder for training.

    Args:
        root: The folder.
        modality: Name of its subfolder.
        config: The data section.
        patterns: Patterns for file names.

    Raises:
        DataError: The layout is not supported, or fewer than two classes have images.
    """
    exclude, skipped = Exclude(config.exclude), SkippedFiles()
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
    classes = _classes(sorted(set(names.values())), config.positive_class, base, skipped)
    labels = {spelling: classes.index(name) for spelling, name in names.items()}
    samples = (
        Sample(
            file,
            key,
            labels[name],
            read_name(file, patterns.patient, "patient_regex"),
            splits[split],
            read_name(file, patterns.image_id, "image_id_regex"),
        )
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
    found = f"modalities there: {', '.join(present)}" if present else "it holds no folders"
    tables = sorted(root.glob("*.csv"))[:1]
    return DataError(
        f"{root}: no modality {modality!r}; {found}; choose one with --modality, or put the folders of "
        f"classes or splits into {root / modality}"
        + "".join(
            f", or list the images in a manifest, if {table.name} is one: --data {table}" for table in tables
        )
    )


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

    Raises:
        DataError: The folders are not ``train``, ``val`` and perhaps ``test``.
    """
    below = _folders(base, exclude)
    named = [name for name in below if is_like_split(name)]
    if not named:
        return {"": None}
    takes = "it takes train, val and perhaps test, or one folder per class"
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
    """Return the class folders; count images outside of them.

    Raises:
        DataError: A class folder holds split folders.
    """
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
        raise DataError(
            f"{base}: {found}; a classifier needs a folder of images for each of two classes or more: "
            f"{base.name}/CLASS/*{why}"
        )
    return order_classes(names, positive)


def read_name(file: str, pattern: re.Pattern[str] | None, setting: str) -> str | None:
    """Return group 1 of a pattern in a file name, None without a pattern.

    Raises:
        DataError: The name does not match.
    """
    if pattern is None:
        return None
    match = pattern.search(file.rpartition("/")[2])
    if match is None or not match[1]:
        raise DataError(
            f"{file}: its name does not match data.{setting}={pattern.pattern}",
            public=f"a file's name does not match data.{setting}={pattern.pattern}",
        )
    return match[1]


@dataclass(frozen=True)
class NameHints:
    """Label, patient and image id of an image, as far as its path names them (inference needs none).

    Attributes:
        classes: Classes of the model.
        patient_regex: Group 1 of a match in the file name is the patient.
        image_id_regex: Group 1 of a match in the file name is the image id.
    """

    classes: tuple[str, ...]
    patient_regex: str | None
    image_id_regex: str | None

    def sample(self, file: str, key: str) -> Sample:
        """Return the sample of an image file; exactly one folder named as a class labels it."""
        *folders, name = key.split("/")
        named = [folder for folder in folders if folder in self.classes]
        return Sample(
            file,
            key,
            self.label(named[0] if len(named) == 1 else ""),
            find_group(self.patient_regex, name),
            None,
            find_group(self.image_id_regex, name),
        )

    def label(self, name: str) -> int:
        """Return the index of a class, `UNKNOWN` for another name."""
        return self.classes.index(name) if name in self.classes else UNKNOWN


def find_group(pattern: str | None, name: str) -> str | None:
    """Return group 1 of the first match of a pattern in a name, None without a match or a pattern."""
    match = re.search(pattern, name) if pattern else None
    return match[1] if match else None


def list_unlabeled_folder(root: Path, modality: str, config: DataConfig, names: NameHints) -> Listing:
    """List every image below a folder, or below its subfolder named as the modality, for inference.

    Raises:
        DataError: A model of several modalities finds no folder for one of them.
    """
    base, modalities = root / modality, config.modalities
    if not base.is_dir():
        if len(modalities) > 1:
            raise DataError(f"{root}: no folder {modality}; the model stacks {', '.join(modalities)}")
        base = root
    skipped = SkippedFiles()
    files = image_files(base, root, Exclude(config.exclude), skipped)
    samples = [names.sample(file, key) for file, key in files]
    return listing_of_files(root, modality, names.classes, samples, skipped.notes(str(base)))
