"""The data of a run: decoded, split, checked for leaks, and named by fingerprints."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from src.data.cache import DecodedImages, decode_listing
from src.data.samples import SPLITS, Listing, Sample
from src.data.sources import list_samples
from src.data.split import describe_leaks, find_leaks, split_by_group
from src.errors import DataError
from src.utils.config import DataConfig
from src.utils.io import sha256

_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """One side of the split.

    Attributes:
        rows: int64 ``(N,)``, rows of the data set's pixels.
        labels: int64 ``(N,)``, class indices.
        hashes: SHA-256 of each image's native pixels.
        patients: Index of each image's patient, None where unknown.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    patients: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dataset:
    """All images of a run.

    Attributes:
        root: What was read.
        classes: Class names; of two, the last is the positive one.
        pixels: uint8 ``(N, C, S, S)``, mapped from disk.
        splits: ``train``, ``val`` and perhaps ``test``.
        fingerprint: SHA-256 over pixels, class, patient group and split of every sample.
        split_fingerprint: SHA-256 over which pixels are on which side.
        warnings: Sentences to show and to record.
        counts: ``bad_images`` that were skipped, ``leaked_images`` that were dropped.
    """

    root: Path
    classes: tuple[str, ...]
    pixels: NDArray[np.uint8]
    splits: dict[str, Split]
    fingerprint: str
    split_fingerprint: str
    warnings: tuple[str, ...]
    counts: dict[str, int]

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return int(self.pixels.shape[1])

    @property
    def size(self) -> int:
        """Side of every image in pixels."""
        return int(self.pixels.shape[2])

    def batch(self, split: str, positions: NDArray[np.int64]) -> torch.Tensor:
        """uint8 images ``(len(positions), C, S, S)`` of a split, copied out of the mapped file."""
        return torch.from_numpy(self.pixels[self.splits[split].rows[positions]])

    @cached_property
    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of training pixels scaled to [0, 1].

        At most 2,048 images, evenly spaced: more do not change the third digit.
        """
        rows = self.splits["train"].rows
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), 2048)).astype(np.int64)]
        values = np.arange(256) / 255
        histograms = [
            np.bincount(self.pixels[chosen, c].ravel(), minlength=256) for c in range(self.channels)
        ]
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


@dataclass(frozen=True)
class _Records:
    """Parallel columns, one entry per image."""

    rows: NDArray[np.int64]
    samples: tuple[Sample, ...]
    hashes: tuple[str, ...]
    splits: tuple[str, ...]

    def take(self, positions: Sequence[int]) -> "_Records":
        return _Records(
            self.rows[list(positions)],
            tuple(self.samples[i] for i in positions),
            tuple(self.hashes[i] for i in positions),
            tuple(self.splits[i] for i in positions),
        )


def load_dataset(config: DataConfig, cache_dir: Path, *, rehash: bool = False) -> Dataset:
    """Lists, decodes (or finds in the cache), splits and checks the images of a run.

    Args:
        config: The data section.
        cache_dir: Folder of the decode cache and of the demo.
        rehash: Decode and hash every file again, whatever the cache says.

    Raises:
        DataError: The data cannot be used; the message says why and what to do.
    """
    listing = list_samples(config, cache_dir)
    decoded = decode_listing(listing, cache_dir, config.image_size, config.channels, rehash=rehash)
    warnings = _check_bad(decoded, config)
    records = _split(decoded, config, listing)
    kept, leak_warnings = _check_leaks(records, config)
    ordered = kept.take(sorted(range(len(kept.rows)), key=lambda i: _sort_key(kept, i)))
    patients = _patient_indices(ordered)
    splits = {name: _make_split(ordered, patients, name) for name in SPLITS if name in ordered.splits}
    dataset = Dataset(
        root=listing.root,
        classes=listing.classes,
        pixels=decoded.pixels,
        splits=splits,
        fingerprint=_fingerprint(ordered, patients, listing.classes),
        split_fingerprint=sha256("\n".join(map("{} {}".format, ordered.splits, ordered.hashes)).encode()),
        warnings=(*warnings, *leak_warnings),
        counts={"bad_images": len(decoded.bad), "leaked_images": len(records.rows) - len(kept.rows)},
    )
    _check_classes(dataset)
    return dataset


def _check_bad(decoded: DecodedImages, config: DataConfig) -> list[str]:
    if not decoded.bad:
        return []
    more = f"; and {len(decoded.bad) - _SHOWN} more" if len(decoded.bad) > _SHOWN else ""
    named = "; ".join(decoded.bad[:_SHOWN]) + more
    if config.on_bad_image == "error":
        raise DataError(
            f"{named}. Mend or remove what is named, or leave it out with data.on_bad_image=skip",
            public=f"{len(decoded.bad)} of the images cannot be read; stderr names them",
        )
    return [f"{len(decoded.bad)} images are skipped: {named}"]


def _split(decoded: DecodedImages, config: DataConfig, listing: Listing) -> _Records:
    samples, hashes = decoded.samples, decoded.hashes
    if listing.is_split:
        splits = [sample.split or "" for sample in samples]
    else:
        # Without patients, equal pixels are one group: a copy under another name must not leak.
        groups = [sample.patient or sha for sample, sha in zip(samples, hashes, strict=True)]
        splits = split_by_group(
            groups,
            [listing.classes[sample.label] for sample in samples],
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            seed=config.split_seed,
        )
    return _Records(np.arange(len(samples)), samples, hashes, tuple(splits))


def _check_leaks(records: _Records, config: DataConfig) -> tuple[_Records, list[str]]:
    """Looks for the same image or patient in two splits; with ``drop`` the training side gives way."""
    images = find_leaks(records.splits, records.hashes)
    patients = find_leaks(records.splits, [sample.patient for sample in records.samples])
    found = "; ".join(filter(None, [describe_leaks(images, "image"), describe_leaks(patients, "patient")]))
    if not found:
        return records, []
    if config.on_leak == "error":
        raise DataError(f"leak between splits: {found}. Mend the split, or choose data.on_leak=drop or allow")
    if config.on_leak == "allow":
        return records, [f"leak between splits, allowed by data.on_leak: {found}"]
    kept = [
        i
        for i, (split, sha, sample) in enumerate(
            zip(records.splits, records.hashes, records.samples, strict=True)
        )
        if split != "train" or (sha not in images and sample.patient not in patients)
    ]
    dropped = len(records.rows) - len(kept)
    return records.take(kept), [
        f"leak between splits: {found}; {dropped} images are dropped from train, val and test stay"
    ]


def _sort_key(records: _Records, i: int) -> tuple[str, int, str, str, str]:
    sample = records.samples[i]
    return records.hashes[i], sample.label, records.splits[i], sample.patient or "", sample.key


def _patient_indices(records: _Records) -> tuple[int | None, ...]:
    """Patients as numbers in the order of the fingerprint, so that no identifier leaves the data."""
    numbers: dict[str, int] = {}
    return tuple(
        None if sample.patient is None else numbers.setdefault(sample.patient, len(numbers))
        for sample in records.samples
    )


def _make_split(records: _Records, patients: tuple[int | None, ...], name: str) -> Split:
    positions = [i for i, split in enumerate(records.splits) if split == name]
    chosen = records.take(positions)
    labels = np.array([sample.label for sample in chosen.samples], dtype=np.int64)
    return Split(chosen.rows, labels, chosen.hashes, tuple(patients[i] for i in positions))


def _fingerprint(records: _Records, patients: tuple[int | None, ...], classes: tuple[str, ...]) -> str:
    lines = [
        f"{split}\t{classes[sample.label]}\t{patient}\t{sha}"
        for split, sample, patient, sha in zip(
            records.splits, records.samples, patients, records.hashes, strict=True
        )
    ]
    return sha256("\n".join(lines).encode())


def _check_classes(dataset: Dataset) -> None:
    for name, split in dataset.splits.items():
        missing = [c for label, c in enumerate(dataset.classes) if not (split.labels == label).any()]
        if missing:
            numbers = ", ".join(f"{s} {c}: {count}" for s, c, count, _ in dataset.table())
            raise DataError(f"{dataset.root}: {name} has no image of class {', '.join(missing)} ({numbers})")
    if not {"train", "val"} <= set(dataset.splits):
        raise DataError(f"{dataset.root}: no image for {' or '.join({'train', 'val'} - set(dataset.splits))}")
