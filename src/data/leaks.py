"""The same image or patient in two splits: found by content, and kept from flattering a score."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .records import Records
from .samples import SPLITS

Leaks = dict[str, set[str]]
"""Splits by image hash or patient, of those that are in several."""


@dataclass(frozen=True)
class Checked:
    """What is left to train and to score on.

    Attributes:
        records: The samples that stay.
        counts: ``leaked_images``, dropped from train; ``allowed_leaks``, images and patients that train
            shares with another split and that were allowed to.
        notes: Sentences for the user; they name no image and no patient.
    """

    records: Records
    counts: Mapping[str, int]
    notes: list[str]


def check_leaks(records: Records, on_leak: str) -> Checked:
    """Looks for the same image (of any modality) or the same patient in two splits.

    Args:
        records: All samples, on their sides.
        on_leak: ``drop`` (the training side gives way; what val and test share stays), ``error``, or
            ``allow``.

    Raises:
        DataError: There is a leak, and ``on_leak`` is ``error``.
    """
    images: Leaks = find_leaks(
        np.repeat(records.splits, records.shas.shape[1]).tolist(), records.shas.ravel().tolist()
    )
    patients = find_leaks(records.splits.tolist(), records.patients.tolist())
    patients |= _leaks_by_file(records)
    found = "; ".join(filter(None, [describe_leaks(images, "image"), describe_leaks(patients, "patient")]))
    counts = {"leaked_images": 0, "allowed_leaks": 0}
    if not found:
        return Checked(records, counts, [])
    if on_leak == "error":
        raise DataError(f"leak between splits: {found}. Mend the split, or choose data.on_leak=drop or allow")
    if on_leak == "allow":
        allowed = sum("train" in splits for splits in [*images.values(), *patients.values()])
        note = f"leak between splits, allowed by data.on_leak: {found}"
        return Checked(records, counts | {"allowed_leaks": allowed}, [note])
    kept = records.take((records.splits != "train") | ~_are_leaked(records, images, patients))
    dropped = len(records) - len(kept)
    note = f"leak between splits: {found}; dropped from train: {dropped}; val and test stay"
    return Checked(kept, counts | {"leaked_images": dropped}, [note])


def _are_leaked(records: Records, images: Leaks, patients: Leaks) -> NDArray[np.bool_]:
    columns = [(records.patients, patients), (records.file_patients, patients)]
    columns += [(shas, images) for shas in records.shas.T]
    is_leaked = np.zeros(len(records), bool)
    for column, leaks in columns:
        is_leaked |= np.fromiter((key in leaks for key in column), bool, len(records))
    return is_leaked


def _leaks_by_file(records: Records) -> Leaks:
    """Patients by the files' own word: a manifest may have an id for each study only."""
    named = records.take((records.file_patients != "") & (records.file_patients != records.patients))
    if len(set(named.file_patients)) < 2:  # everybody is nobody
        return {}
    return find_leaks(named.splits, named.file_patients)


def find_contradictions(records: Records) -> list[str]:
    """A sentence if the same image stands there under several labels; it names no image."""
    labels: dict[str, int] = {}
    several = {
        content
        for content, label in zip(records.contents, records.labels.tolist(), strict=True)
        if labels.setdefault(content, label) != label
    }
    if not several:
        return []
    return [
        f"the same pixels under several labels: {len(several)} image{'s' * (len(several) > 1)}; a network "
        "cannot learn both, so find out which label is right and remove the other"
    ]


def find_leaks(splits: Iterable[str], keys: Iterable[str | None]) -> Leaks:
    """Return the keys (image hashes or patients) that occur in several splits; None is no key."""
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
    """Such as ``1 image in train and test``; empty without leaks. Names no image and no patient."""
    pairs: dict[str, int] = defaultdict(int)
    for found in leaks.values():
        pairs[" and ".join(split for split in SPLITS if split in found)] += 1
    return ", ".join(
        f"{count} {what}{'s' if count > 1 else ''} in {where}" for where, count in sorted(pairs.items())
    )
