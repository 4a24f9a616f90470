"""Finds the images of a modality: folders and the demo here, ``.npz`` files by `npz`."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from src.data.demo import DEMO_NAME, DEMO_PATIENT_REGEX, make_demo
from src.data.images import SUFFIXES, read_header, read_image
from src.data.npz import list_npz
from src.data.samples import SPLITS, Listing, Sample, order_classes
from src.errors import DataError
from src.utils.config import DataConfig


def list_samples(config: DataConfig, cache_dir: Path) -> Listing:
    """Lists the images of the configured modality without reading their pixels.

    Args:
        config: The data section.
        cache_dir: Where the demo is made on first use.

    Raises:
        DataError: Nothing usable is there; the message says what was looked for and what was found.
    """
    if len(config.modalities) > 1:
        raise DataError(f"data.modalities: {list(config.modalities)}: a run takes one modality; choose one")
    pattern = _patient_pattern(config.patient_regex)
    if config.root_dir == DEMO_NAME:
        return _list_folder(make_demo(cache_dir), config, pattern or re.compile(DEMO_PATIENT_REGEX))
    root = Path(config.root_dir).expanduser()
    if root.is_dir():
        return _list_folder(root, config, pattern)
    if root.is_file():
        return list_npz(root, config.positive_class)
    modality = config.modalities[0]
    raise DataError(
        f"{root}: no such folder or file; --data takes demo, a folder "
        f"ROOT/{modality}/{{train,val,test}}/CLASS/*, a folder ROOT/{modality}/CLASS/*, or a MedMNIST .npz"
    )


def _patient_pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DataError(f"data.patient_regex: {text!r} is no regular expression: {error}") from None
    if pattern.groups < 1:
        raise DataError(rf"data.patient_regex: {text!r} has no group; for p0001_2.png write ^(p\d+)_")
    return pattern


def _list_folder(root: Path, config: DataConfig, pattern: re.Pattern[str] | None) -> Listing:
    modality = config.modalities[0]
    present = _folders(root)
    if modality not in present:
        found = f"modalities there: {', '.join(present)}" if present else "it holds no folders"
        raise DataError(f"{root}: no modality {modality!r}; {found}")
    base = root / modality
    below = _folders(base)
    splits: list[str | None] = [split for split in SPLITS if split in below]
    if splits and (set(below) - set(SPLITS) or not {"train", "val"} <= set(below)):
        raise DataError(
            f"{base}: holds {', '.join(below)}; it takes train, val and perhaps test, or one folder per class"
        )
    files = _files_by_class(base, splits or [None])
    classes = _classes(sorted({name for _, name in files}), config.positive_class, base)
    samples = (
        _sample(root, file, classes.index(name), split, pattern)
        for (split, name), found in files.items()
        for file in found
    )
    return _listing(root, classes, samples)


def _folders(path: Path) -> list[str]:
    try:
        return sorted(
            entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        _refuse(error)
        raise


def _files_by_class(base: Path, splits: list[str | None]) -> dict[tuple[str | None, str], list[Path]]:
    """The image files of each (split, class) that has any."""
    folders = {
        (split, name): base / (split or "") / name
        for split in splits
        for name in _folders(base / (split or ""))
    }
    found = {place: _image_files(folder) for place, folder in folders.items()}
    return {place: files for place, files in found.items() if files}


def _image_files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        # Hidden folders hold copies, such as those of notebooks.
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return found


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed: {error.strerror}", public="a folder cannot be listed"
    )


def _classes(names: list[str], positive: str | None, base: Path) -> tuple[str, ...]:
    if len(names) < 2:
        found = (
            f"images of the class {names[0]!r} only"
            if names
            else f"no images ({', '.join(sorted(SUFFIXES))})"
        )
        raise DataError(
            f"{base}: {found}; a classifier needs a folder of images for each of two classes or more"
        )
    classes = order_classes(names, positive)
    if classes is None:
        raise DataError(
            f"data.positive_class: {positive!r} must be one of two classes; there are {', '.join(names)}"
        )
    return classes


def _sample(root: Path, file: Path, label: int, split: str | None, pattern: re.Pattern[str] | None) -> Sample:
    patient = None
    if pattern is not None:
        match = pattern.search(file.name)
        if match is None or not match[1]:
            raise DataError(
                f"{file}: its name does not match data.patient_regex {pattern.pattern!r}",
                public=f"a file's name does not match data.patient_regex {pattern.pattern!r}",
            )
        patient = match[1]
    return Sample(file, file.relative_to(root).as_posix(), label, patient, split)


def _listing(root: Path, classes: tuple[str, ...], samples: Iterable[Sample]) -> Listing:
    in_order = tuple(sorted(samples, key=lambda sample: sample.key))
    return Listing(root, classes, in_order, lambda s: read_header(s.file), lambda s: read_image(s.file))
