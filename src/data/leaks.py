"""Find leaks between splits: the same image, the same patient, or near-duplicate images."""

import csv
import io
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.io import atomic_file, file_lock, open_regular, sha256_of_lines
from ..utils.tables import escape_formula
from .file_index import DAMAGED
from .image_array import ImageArray
from .image_similarity import Comparison, compare
from .join_modalities import Records, StepResult
from .listing import SPLITS
from .npz import Arrays

Leaks = dict[str, set[str]]
"""Splits by image hash or patient, of those that are in several."""


def check_leaks(records: Records, on_leak: str) -> StepResult:
    """Find the same image (of any modality) or the same patient in two splits.

    Args:
        records: All samples, assigned to splits.
        on_leak: ``drop`` (from train; leaks between val and test stay), ``error``, or ``allow``.

    Returns:
        The samples that remain, notes that name no image and no patient, and the counts ``leaked_images``
        (dropped from train) and ``allowed_leaks`` (images and patients that train may share with another
        split).

    Raises:
        DataError: A leak is found, and ``on_leak`` is ``error``.
    """
    images = find_leaks(np.repeat(records.splits, records.shas.shape[1]), records.shas.ravel())
    patients = find_leaks(records.splits, records.patients)
    patients |= _leaks_by_file(records)
    found = "; ".join(filter(None, [describe_leaks(images, "image"), describe_leaks(patients, "patient")]))
    counts = {"leaked_images": 0, "allowed_leaks": 0}
    if not found:
        return StepResult(records, [], counts)
    if on_leak == "error":
        raise DataError(
            f"leak between splits: {found}. Correct the split, or choose data.on_leak=drop or allow"
        )
    if on_leak == "allow":
        allowed = sum("train" in splits for splits in [*images.values(), *patients.values()])
        note = f"leak between splits, allowed by data.on_leak: {found}"
        return StepResult(records, [note], counts | {"allowed_leaks": allowed})
    kept = records.take((records.splits != "train") | ~_are_leaked(records, images, patients))
    dropped = len(records) - len(kept)
    note = f"leak between splits: {found}; dropped from train: {dropped}; val and test stay"
    return StepResult(kept, [note], counts | {"leaked_images": dropped})


def _are_leaked(records: Records, images: Leaks, patients: Leaks) -> NDArray[np.bool_]:
    columns = [(records.patients, patients), (records.file_patients, patients)]
    columns += [(shas, images) for shas in records.shas.T]
    is_leaked = [[key in leaks for key in column] for column, leaks in columns]
    return np.asarray(np.any(is_leaked, axis=0))


def _leaks_by_file(records: Records) -> Leaks:
    """Find leaks of patients named in the files: a manifest may have one id per study."""
    named = records.take((records.file_patients != "") & (records.file_patients != records.patients))
    if len(set(named.file_patients)) < 2:  # one name for all files is an anonymous one
        return {}
    return find_leaks(named.splits, named.file_patients)


def find_contradictions(records: Records) -> list[str]:
    """Return a sentence if the same image has several labels, without naming the image."""
    labeled = set(zip(records.contents, records.labels.tolist(), strict=True))
    several = sum(count > 1 for count in Counter(content for content, _ in labeled).values())
    if not several:
        return []
    return [
        f"the same pixels under several labels: {several} image{'s' * (several > 1)}; a network cannot learn "
        "both, so find out which label is right and remove the other"
    ]


def find_leaks(splits: Iterable[str], keys: Iterable[str | None]) -> Leaks:
    """Return the keys (image hashes or patients) that occur in several splits; None is skipped."""
    # A bit per split in one number per key: a set per key would take gigabytes.
    bits = {split: 1 << number for number, split in enumerate(SPLITS)}
    found: dict[str, int] = {}
    for split, key in zip(splits, keys, strict=True):
        if key is not None:
            found[key] = found.get(key, 0) | bits[split]
    return {
        key: {split for split, bit in bits.items() if there & bit}
        for key, there in found.items()
        if there.bit_count() > 1
    }


def describe_leaks(leaks: Leaks, what: str) -> str:
    """Return a summary such as ``1 image in train and test``, "" without leaks."""
    pairs = Counter(" and ".join(split for split in SPLITS if split in found) for found in leaks.values())
    return ", ".join(
        f"{count} {what}{'s' if count > 1 else ''} in {where}" for where, count in sorted(pairs.items())
    )


SECONDS = 60.0
"""Time limit of a comparison that is only reported; the report states what was not compared."""

_FORMAT = 1
_COLUMNS = ("split", "image", "training_image", "same_class", "correlation")


def check_near_duplicates(
    records: Records, arrays: Sequence[ImageArray], cache_dir: Path, *, action: str, threshold: float
) -> StepResult:
    """Compare val and test with training images, and report, drop or refuse near-duplicates.

    Args:
        records: All samples, in the order of the fingerprint.
        arrays: The decoded images of each modality.
        cache_dir: Folder of the cache, for the comparison and a table of the pairs.
        action: Value of ``data.on_near_duplicate``.
        threshold: Thumbnail correlation above which images are near-duplicates.

    Raises:
        DataError: Near-duplicates are found and ``action`` is ``error``, or the cache cannot be written.
    """
    is_train = records.splits == "train"
    train, held_out = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    folder = cache_dir / "near_duplicates"
    path = folder / f"{_name(records, arrays)[:16]}.npz"
    deadline = time.monotonic() + (SECONDS if action == "report" else np.inf)
    try:
        with file_lock(path.with_suffix(".lock")):
            comparison = _load(path, len(held_out), len(train))
            if not comparison.is_complete and (not comparison.compared or np.isinf(deadline)):
                compare(comparison, records, arrays, deadline=deadline)
                with atomic_file(path) as file:
                    np.savez(file, **vars(comparison))
            is_alike = comparison.held_out > threshold
            pairs = path.with_suffix(".csv")
            if is_alike.any():
                _write_pairs(pairs, records, comparison, is_alike)
    except OSError as error:
        raise DataError(f"{folder}: the comparison of images cannot be saved: {error}") from None
    found = _describe(records.splits[held_out], is_alike, comparison, threshold)
    count = int(is_alike.sum())
    if not count:
        return StepResult(records, [found] if found else [], {"near_duplicates": 0})
    found += f"; the pairs are in {pairs}"
    if action == "error":
        raise DataError(
            f"{found}. Correct the split, or choose data.on_near_duplicate=drop or report",
            public=f"{count} val and test images look like a training image (data.on_near_duplicate=error)",
        )
    if action != "drop":
        note = f"{found}; nothing is dropped (data.on_near_duplicate={action})"
        return StepResult(records, [note], {"near_duplicates": count})
    is_dropped = np.zeros(len(records), bool)
    is_dropped[train] = comparison.train > threshold
    note = f"{found}; dropped from train: {is_dropped.sum()}; val and test stay"
    return StepResult(records.take(~is_dropped), [note], {"near_duplicates": count})


def _name(records: Records, arrays: Sequence[ImageArray]) -> str:
    """Return the key of a comparison: rendered pixels, patients and splits."""
    # The name of an array is a hash of its images, window, size and channels.
    files = [f"{_FORMAT}", *(Path(array.file.name).stem for array in arrays)]
    lines = map("{} {} {}".format, records.splits, records.contents, records.patients)
    return sha256_of_lines([*files, sha256_of_lines(lines)])


def _load(path: Path, held_out: int, train: int) -> Comparison:
    empty = Comparison.empty(held_out, train)
    try:
        with open_regular(path) as file:
            stored = Arrays(file)
            arrays: dict[str, Any] = {name: stored[name] for name in vars(empty)}
    except (FileNotFoundError, *DAMAGED):
        return empty
    is_same = all(arrays[name].shape == value.shape for name, value in vars(empty).items())
    return Comparison(**arrays) if is_same else empty


def _write_pairs(path: Path, records: Records, found: Comparison, is_alike: NDArray[np.bool_]) -> None:
    """Write a table of val and test images that look like a training image, the most alike first."""
    is_train = records.splits == "train"
    train, held_out = records.take(is_train), records.take(~is_train)
    chosen = np.flatnonzero(is_alike)
    chosen = chosen[np.argsort(-found.held_out[chosen], kind="stable")]
    partners = found.partners[chosen]
    rows = zip(
        held_out.splits[chosen],
        map(escape_formula, held_out.keys[chosen]),
        map(escape_formula, train.keys[partners]),
        held_out.labels[chosen] == train.labels[partners],
        map("{:.3f}".format, found.held_out[chosen].clip(0, 1)),
        strict=True,
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
    with atomic_file(path) as file:  # file names may hold bytes that are not valid UTF-8
        file.write(text.getvalue().encode(errors="surrogateescape"))


def _describe(
    splits: NDArray[np.object_], is_alike: NDArray[np.bool_], found: Comparison, threshold: float
) -> str:
    """Return a sentence on near-duplicates and on images that were not compared, "" if none."""
    said = []
    if is_alike.any():
        counts = [
            f"{is_alike[splits == split].sum()} of {(splits == split).sum()} {split} images"
            for split in ("val", "test")
            if (splits == split).any()
        ]
        share = found.share_of_pairs(threshold)
        said += [
            f"near-duplicates: {' and '.join(counts)} look like a training image (thumbnail correlation "
            f"above {threshold:g}, data.near_duplicate_threshold); of random pairs of different patients "
            f"{100 * share:.2g} % do"
        ]
        if (partners := share * len(found.train)) > 1:
            said += [
                f"an image looks like {partners:.0f} training images on average, so most of these are "
                "probably similar and no copies; raise data.near_duplicate_threshold"
            ]
    if not found.is_complete:
        said += [
            f"near-duplicates were searched in {found.compared} of {len(found.train)} training images, "
            f"chosen at random, within {SECONDS:g} s; data.on_near_duplicate=drop or error compares all"
        ]
    if blank := int(found.numbers[1]):
        said += [f"{blank} images without any contrast cannot be compared"]
    return "; ".join(said)
