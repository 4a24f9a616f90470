"""The data of a run: decoded, split, checked for leaks, and named by fingerprints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from src.data.cache import DecodedImages, decode_listings
from src.data.demo import DEMO_NAME
from src.data.entries import join_entries
from src.data.image_array import ImageArray, ImageSource
from src.data.images import Range
from src.data.leaks import check_leaks, find_contradictions
from src.data.near_duplicates import check_near_duplicates, group_near_duplicates
from src.data.records import Records, join, texts
from src.data.samples import SPLITS
from src.data.sources import list_modalities
from src.data.split import merge_groups, split_by_fold, split_by_group, split_by_image
from src.data.windows import check_window, one_window, window_notes
from src.errors import DataError
from src.utils.config import DataConfig
from src.utils.io import sha256_of_lines

_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """One side of the split.

    Attributes:
        rows: int64 ``(N, M)``, the row of each sample in the packs of the M modalities.
        labels: int64 ``(N,)``, class indices.
        hashes: SHA-256 that names each sample by its native pixels.
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
        root: What was read.
        classes: Class names; of two, the last is the positive one.
        packs: The decoded images of each modality.
        window: (low, high) that images with more than plain 8-bit pixels are seen through, None where
            there are none, or each file says its own.
        splits: ``train``, ``val`` and perhaps ``test``.
        fingerprint: SHA-256 over pixels, class, patient group and split of every sample.
        split_fingerprint: SHA-256 over which pixels are on which side.
        warnings: Sentences to show and to record.
        counts: ``bad_images`` that were skipped, ``unpaired_images`` that lack a modality,
            ``leaked_images`` that were dropped from train, ``allowed_leaks``, and ``near_duplicates``: val
            and test images that look like a training image, whether or not that was dropped.
    """

    root: Path
    classes: tuple[str, ...]
    packs: tuple[ImageArray, ...]
    window: Range | None
    splits: dict[str, Split]
    fingerprint: str
    split_fingerprint: str
    warnings: tuple[str, ...]
    counts: dict[str, int]

    @property
    def channels(self) -> int:
        """Channels of every sample, over all modalities."""
        return sum(int(pack.shape[1]) for pack in self.packs)

    @property
    def channels_each(self) -> int:
        """Channels of each modality."""
        return int(self.packs[0].shape[1])

    @property
    def size(self) -> int:
        """Side of every image in pixels."""
        return int(self.packs[0].shape[2])

    def images(self, split: str) -> ImageSource:
        """The images of a split, to be read in batches."""
        return ImageSource(self.packs, self.splits[split].rows)

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
        spreads = [
            float(np.average((values - m) ** 2, weights=h)) ** 0.5
            for m, h in zip(means, histograms, strict=True)
        ]
        return tuple(means), tuple(max(spread, 1e-3) for spread in spreads)

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
    """Lists, decodes (or finds in the cache), joins, splits and checks the images of a run.

    Args:
        config: The data section.
        cache_dir: Folder of the decode cache and of the demo.
        rehash: Decode and hash every file again, whatever the cache says.

    Raises:
        DataError: The data cannot be used; the message says why and what to do.
    """
    listings = list_modalities(config, cache_dir)
    classes, root = listings[0].classes, listings[0].root
    decoded = decode_listings(listings, config, cache_dir, rehash=rehash)
    bad_notes = _check_bad(decoded, config)
    entries = join_entries([images.entries for images in decoded])
    blank_notes = check_window(entries, config.window)
    joined = join(decoded)
    packs = tuple(images.pixels for images in decoded)
    placed, group_notes = _split(joined.records, packs, classes, config)
    checked = check_leaks(placed, config.on_leak)
    compared = check_near_duplicates(_sorted(checked.records), packs, config, cache_dir)
    records = compared.records
    patients = _patient_indices(records)
    split_notes = [*group_notes, *checked.notes, *compared.notes]
    notes = [*joined.notes, *split_notes, *find_contradictions(records)]
    dataset = Dataset(
        root=root,
        classes=classes,
        packs=packs,
        window=one_window(entries, config.window),
        splits=_make_splits(records, patients),
        fingerprint=_fingerprint(records, patients, classes),
        split_fingerprint=sha256_of_lines(map("{} {}".format, records.splits, records.contents)),
        warnings=(
            *(note for listing in listings for note in listing.notes),
            *bad_notes,
            *window_notes(entries, config.window),
            *blank_notes,
            *notes,
        ),
        counts={
            "bad_images": sum(len(images.bad) for images in decoded),
            "unpaired_images": joined.unpaired,
            **checked.counts,
            **compared.counts,
        },
    )
    _check_classes(dataset, split_notes)
    return dataset


def _check_bad(decoded: Sequence[DecodedImages], config: DataConfig) -> list[str]:
    bad = [message for images in decoded for message in images.bad]
    if not bad:
        return []
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    named = "; ".join(bad[:_SHOWN]) + more
    if config.on_bad_image == "error":
        raise DataError(
            f"{named}. Mend or remove what is named, or leave it out with data.on_bad_image=skip",
            public=f"{len(bad)} of the images cannot be read; stderr names them",
        )
    return [f"{len(bad)} images are skipped: {named}"]


def _split(
    records: Records, packs: Sequence[ImageArray], classes: tuple[str, ...], config: DataConfig
) -> tuple[Records, list[str]]:
    """Assign the records to splits, of which a cross-validation divides all but test; notes for the user."""
    by_patient = config.stratify == "patients" or (config.stratify == "auto" and config.root_dir == DEMO_NAME)
    # Splits of earlier versions, which recorded runs depend on, kept only images without patient together.
    groups = records.groups if by_patient else merge_groups(records.groups, _links(records))
    notes = []
    if config.on_near_duplicate == "group":
        if records.splits[0] and config.folds is None:
            raise DataError(
                "data.on_near_duplicate=group needs a split of ours, and the data bring their own; choose "
                "drop, or take their split out"
            )
        groups, note = group_near_duplicates(records, groups, packs, config.near_duplicate_threshold)
        notes.append(note)
    placed = _place(records, groups, classes, config, by_patient=by_patient)
    if config.folds is None:
        return placed, notes
    is_rest = placed.splits != "test"
    rest, rest_groups = placed.take(is_rest), texts(groups)[is_rest].tolist()
    sides = split_by_fold(
        rest_groups, rest.labels.tolist(), folds=config.folds, fold=config.fold, seed=config.split_seed
    )
    return replace(rest, splits=texts(sides)), notes


def _links(records: Records) -> list[tuple[str, str]]:
    """Pairs of groups that have an image in common."""
    first: dict[str, str] = {}
    return [
        (group, other)
        for shas in records.shas.T.tolist()
        for group, sha in zip(records.groups, shas, strict=True)
        if (other := first.setdefault(sha, group)) != group
    ]


def _place(
    records: Records, groups: list[str], classes: tuple[str, ...], config: DataConfig, *, by_patient: bool
) -> Records:
    """The records where the source puts them, else where we do."""
    if records.splits[0]:
        return records
    split = split_by_group if by_patient else split_by_image
    sides = split(
        groups,
        [classes[label] for label in records.labels.tolist()],
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    return replace(records, splits=texts(sides))


def _sorted(records: Records) -> Records:
    """Sort the records by their pixels, whatever their names; names only order copies of an image."""
    patients = texts([patient or "" for patient in records.patients])
    contents = np.array(records.contents, dtype=np.bytes_)  # sorted faster than strings
    return records.take(np.lexsort((records.keys, patients, records.splits, records.labels, contents)))


def _patient_indices(records: Records) -> list[int | None]:
    """Patients as numbers in the order of the fingerprint, so that no identifier leaves the data."""
    numbers: dict[str, int] = {}
    return [
        None if patient is None else numbers.setdefault(patient, len(numbers)) for patient in records.patients
    ]


def _make_splits(records: Records, patients: list[int | None]) -> dict[str, Split]:
    names = texts(records.samples)
    numbers = np.array(patients, dtype=object)
    sides = {name: records.splits == name for name in SPLITS}
    return {
        name: Split(
            records.rows[chosen],
            records.labels[chosen],
            tuple(names[chosen].tolist()),
            tuple(numbers[chosen].tolist()),
        )
        for name, chosen in sides.items()
        if chosen.any()
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
