"""The dataset of a run: decoded, split, checked for leaks, and identified by fingerprints."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.cli import counted
from ..utils.config import DataConfig
from ..utils.io import sha256_of_lines
from .decode_cache import DecodedListing, decode_listings
from .file_info import FileTable, concatenate_tables
from .image_array import ImageArray, ImageSource
from .image_files import dicom_modalities
from .image_profile import ImageProfile, profiles_of
from .join_modalities import Records, StepResult, join, text_column
from .leaks import check_leaks, check_near_duplicates, find_contradictions
from .listing import SPLITS, Listing
from .pixels import LEGACY, Range
from .shortcut_checks import Aspect, aspect_notes, aspects_by_class, find_rare_color, find_shortcuts
from .sources import list_modalities
from .split import assign_splits
from .windows import (
    check_window,
    describe_corrected,
    is_wide,
    percentile_note,
    shared_window,
    training_window,
    window_notes,
)

_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """The samples of one split.

    Attributes:
        rows: int64 ``(N, M)``, row of each sample in the array of each of the M modalities.
        labels: int64 ``(N,)``, class indices.
        hashes: SHA-256 of each sample's native pixels.
        patients: Index of each sample's patient, None where unknown.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    patients: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """All samples of a run: images of one modality, or of several stacked as channels.

    Attributes:
        root: Folder or file that was read.
        classes: Class names; with two classes, the last is the positive one.
        arrays: The decoded images of each modality.
        window: (low, high) that is applied to all images of more than plain 8-bit pixels; None without
            such images, or if their files name different windows.
        splits: ``train``, ``val`` and perhaps ``test``.
        fingerprint: SHA-256 over pixels, class, patient group and split of every sample.
        split_fingerprint: SHA-256 over which pixels are on which side.
        warnings: Sentences to show and to log.
        counts: ``bad_images`` that were skipped, ``unpaired_images`` that lack a modality,
            ``leaked_images`` that were dropped from train, ``allowed_leaks``, and ``near_duplicates``: val
            and test images that look like a training image, whether or not that was dropped.
        corrected: Kinds and counts of files that earlier versions decoded incorrectly, "" if none.
        modalities: DICOM Modality (such as CT) of a sample of the files; empty unless
            `data.augment.horizontal_flip` is auto.
        aspects: Width divided by height of the files' images, by class.
    """

    root: Path
    classes: tuple[str, ...]
    arrays: tuple[ImageArray, ...]
    window: Range | None
    splits: dict[str, Split]
    fingerprint: str
    split_fingerprint: str
    warnings: tuple[str, ...]
    counts: dict[str, int]
    corrected: str = ""
    modalities: frozenset[str] = frozenset()
    aspects: dict[str, Aspect] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels of a sample, over all modalities."""
        return sum(array.shape[1] for array in self.arrays)

    @property
    def channels_each(self) -> int:
        """Channels of each modality."""
        return self.arrays[0].shape[1]

    @property
    def size(self) -> int:
        """Side of every image in pixels."""
        return self.arrays[0].shape[2]

    def images(self, split: str) -> ImageSource:
        """Return the images of a split, to be read in batches."""
        return ImageSource(self.arrays, self.splits[split].rows)

    def batch(self, split: str, positions: NDArray[np.int64]) -> torch.Tensor:
        """Read uint8 images ``(len(positions), C, S, S)`` of a split into main memory."""
        return self.images(split).read(positions)

    @cached_property
    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of training pixels scaled to [0, 1].

        At most 2,048 samples, evenly spaced: more do not change the third digit.
        """
        count = len(self.splits["train"])
        chosen = np.linspace(0, count - 1, min(count, 2048)).astype(np.int64)
        pixels = self.batch("train", chosen).numpy()
        values = np.arange(256) / 255
        histograms = [np.bincount(pixels[:, c].ravel(), minlength=256) for c in range(self.channels)]
        means = [float(np.average(values, weights=h)) for h in histograms]
        pairs = zip(means, histograms, strict=True)
        variances = [float(np.average((values - mean) ** 2, weights=h)) for mean, h in pairs]
        return tuple(means), tuple(max(variance**0.5, 1e-3) for variance in variances)

    @cached_property
    def profiles(self) -> tuple[ImageProfile, ...]:
        """What the training images of each modality are like."""
        return profiles_of(self.images("train"))

    def table(self) -> list[tuple[str, str, int, int | None]]:
        """Rows (split, class, images, patients or None where unknown)."""
        rows: list[tuple[str, str, int, int | None]] = []
        for name, split in self.splits.items():
            for label, class_name in enumerate(self.classes):
                of_class = np.flatnonzero(split.labels == label)
                patients = {split.patients[i] for i in of_class}
                rows.append((name, class_name, len(of_class), None if None in patients else len(patients)))
        return rows


def load_dataset(config: DataConfig, cache_dir: Path, *, rehash: bool = False) -> Dataset:
    """Load the images of a run: list, decode (or find in the cache), join, split, and check for leaks.

    Args:
        config: The data section.
        cache_dir: Folder of the decode cache and of the demo.
        rehash: Decode and hash every file again, ignoring the cache.

    Raises:
        DataError: The data cannot be used; the message states the reason and the remedy.
    """
    listings = list_modalities(config, cache_dir)
    dataset, table = _load(listings, config, cache_dir, rehash=rehash)
    if not _lacks_window(table, config):
        return dataset
    train, notes = dataset.splits["train"], []
    window = training_window(listings, train.rows, train.hashes, cache_dir)
    del dataset  # releases its arrays, so that the cache may evict them
    if window is not None:
        config = config.model_copy(update={"window": window})
        notes = [percentile_note(table, window)]
    seen, _ = _load(listings, config, cache_dir, has_window=True)
    return replace(seen, warnings=(*notes, *seen.warnings))


def _lacks_window(table: FileTable, config: DataConfig) -> bool:
    """Return whether files of more than 8 bits name no window, and none is configured."""
    return config.window is None and config.fit != LEGACY and bool(table.where(is_wide).any())


def _load(
    listings: Sequence[Listing],
    config: DataConfig,
    cache_dir: Path,
    *,
    rehash: bool = False,
    has_window: bool = False,
) -> tuple[Dataset, FileTable]:
    """Return the windowed dataset and the information of its files.

    Near-duplicates are searched once the window is final, which ``has_window`` states.
    """
    classes, root = listings[0].classes, listings[0].root
    decoded = decode_listings(listings, config, cache_dir, rehash=rehash)
    bad_notes = _check_bad(decoded, config.on_bad_image)
    table = concatenate_tables([images.table for images in decoded])
    blank_notes = check_window(table, config.window)
    joined = join(decoded)
    arrays = tuple(images.pixels for images in decoded)
    is_final = has_window or not _lacks_window(table, config)
    split = _split(joined.records, arrays, classes, config, cache_dir if is_final else None)
    records = split.records
    patients = _patient_indices(records)
    aspects = aspects_by_class(decoded, records, classes)
    modalities = frozenset[str]()
    if config.augment.horizontal_flip == "auto":
        files = [listing.samples for listing in listings if not listing.in_memory]
        modalities = modalities.union(*map(dicom_modalities, files))
    dataset = Dataset(
        root=root,
        classes=classes,
        arrays=arrays,
        window=shared_window(table, config.window),
        splits=_make_splits(records, patients),
        fingerprint=_fingerprint(records, patients, classes),
        split_fingerprint=sha256_of_lines(map("{} {}".format, records.splits, records.contents)),
        warnings=(
            *dict.fromkeys(note for listing in listings for note in listing.notes),
            *bad_notes,
            *window_notes(table, config.window),
            *blank_notes,
            *joined.notes,
            *split.notes,
            *find_contradictions(records),
            *find_shortcuts(decoded),
            *find_rare_color(decoded, config.channels),
            *aspect_notes(aspects),
        ),
        counts={"bad_images": sum(len(images.bad) for images in decoded), **joined.counts, **split.counts},
        corrected=describe_corrected(table, config.window),
        modalities=modalities,
        aspects=aspects,
    )
    _check_classes(dataset, split.notes)
    return dataset, table


def _split(
    records: Records,
    arrays: tuple[ImageArray, ...],
    classes: tuple[str, ...],
    config: DataConfig,
    cache_dir: Path | None,
) -> StepResult:
    """Split the samples and resolve leaks; search for near-duplicates if a cache folder is given."""
    placed = assign_splits(records, arrays, classes, config)
    checked = check_leaks(placed.records, config.on_leak)
    compared = StepResult(_sorted(checked.records), [])
    if cache_dir is not None:
        action, threshold = config.on_near_duplicate, config.near_duplicate_threshold
        compared = check_near_duplicates(
            compared.records, arrays, cache_dir, action=action, threshold=threshold
        )
    notes = [*placed.notes, *checked.notes, *compared.notes]
    return StepResult(compared.records, notes, {**checked.counts, **compared.counts})


def _check_bad(decoded: Sequence[DecodedListing], on_bad_image: str) -> list[str]:
    bad = [message for images in decoded for message in images.bad]
    if not bad:
        return []
    named = "; ".join(bad[:_SHOWN]) + f"; and {len(bad) - _SHOWN} more" * (len(bad) > _SHOWN)
    if on_bad_image == "error":
        raise DataError(
            f"{named}. Repair or remove these files, or leave them out with data.on_bad_image=skip",
            public=f"{len(bad)} of the images cannot be read; stderr names them",
        )
    return [f"{counted(len(bad), 'image is', 'images are')} skipped: {named}"]


def _sorted(records: Records) -> Records:
    """Sort the records by pixel hash; file names only order copies of the same image."""
    patients = text_column([patient or "" for patient in records.patients])
    contents = np.array(records.contents, dtype=np.bytes_)  # sorted faster than strings
    return records.take(np.lexsort((records.keys, patients, records.splits, records.labels, contents)))


def _patient_indices(records: Records) -> list[int | None]:
    """Replace patients by numbers in the order of the fingerprint, so that no identifier leaves the data."""
    numbers: dict[str, int] = {}
    return [
        None if patient is None else numbers.setdefault(patient, len(numbers)) for patient in records.patients
    ]


def _make_splits(records: Records, patients: list[int | None]) -> dict[str, Split]:
    names = text_column(records.samples)
    numbers = np.array(patients, dtype=object)
    return {
        name: Split(
            records.rows[chosen], records.labels[chosen], tuple(names[chosen]), tuple(numbers[chosen])
        )
        for name in SPLITS
        if (chosen := records.splits == name).any()
    }


def _fingerprint(records: Records, patients: list[int | None], classes: tuple[str, ...]) -> str:
    labels = (classes[label] for label in records.labels.tolist())
    columns = (records.splits, labels, patients, records.contents)
    return sha256_of_lines(map("{}\t{}\t{}\t{}".format, *columns))


def _check_classes(dataset: Dataset, notes: list[str]) -> None:
    why = "".join(f"; {note}" for note in notes)
    for name, split in dataset.splits.items():
        missing = [c for label, c in enumerate(dataset.classes) if not (split.labels == label).any()]
        if missing:
            numbers = ", ".join(f"{s} {c}: {count}" for s, c, count, _ in dataset.table())
            raise DataError(
                f"{dataset.root}: {name} has no image of class {', '.join(missing)} ({numbers}){why}"
            )
    if not {"train", "val"} <= set(dataset.splits):
        missing_splits = " or ".join(sorted({"train", "val"} - set(dataset.splits)))
        raise DataError(f"{dataset.root}: no image for {missing_splits}{why}")
