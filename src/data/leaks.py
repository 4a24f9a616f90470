"""The same image or patient in two splits: found by content, and kept from flattering a score."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from src.data.records import Record
from src.data.samples import SPLITS
from src.errors import DataError

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

    records: list[Record]
    counts: Mapping[str, int]
    notes: list[str]


def check_leaks(records: list[Record], on_leak: str) -> Checked:
    """Looks for the same image (of any modality) or the same patient in two splits.

    Args:
        records: All samples, on their sides.
        on_leak: ``drop`` (the training side gives way; what val and test share stays), ``error``, or
            ``allow``.

    Raises:
        DataError: There is a leak, and ``on_leak`` is ``error``.
    """
    images = find_leaks((record.split, sha) for record in records for sha in record.shas)
    patients = find_leaks((record.split, record.patient) for record in records)
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
    kept = [record for record in records if record.split != "train" or not _leaks(record, images, patients)]
    dropped = len(records) - len(kept)
    note = f"leak between splits: {found}; dropped from train: {dropped}; val and test stay"
    return Checked(kept, counts | {"leaked_images": dropped}, [note])


def _leaks(record: Record, images: Leaks, patients: Leaks) -> bool:
    return bool({record.patient, record.file_patient} & patients.keys()) or any(
        sha in images for sha in record.shas
    )


def _leaks_by_file(records: list[Record]) -> Leaks:
    """Patients by the files' own word: a manifest may have an id for each study only."""
    named = [r for r in records if r.file_patient and r.file_patient != r.patient]
    if len({record.file_patient for record in named}) < 2:  # everybody is nobody
        return {}
    return find_leaks((record.split, record.file_patient) for record in named)


def find_leaks(places: Iterable[tuple[str, str | None]]) -> Leaks:
    """What occurs in more than one split, from pairs (split, image hash or patient); None is nothing."""
    found: Leaks = defaultdict(set)
    for split, key in places:
        if key is not None:
            found[key].add(split)
    return {key: splits for key, splits in found.items() if len(splits) > 1}


def describe_leaks(leaks: Leaks, what: str) -> str:
    """Such as ``1 image in train and test``; empty without leaks. Names no image and no patient."""
    pairs: dict[str, int] = defaultdict(int)
    for found in leaks.values():
        pairs[" and ".join(split for split in SPLITS if split in found)] += 1
    return ", ".join(
        f"{count} {what}{'s' if count > 1 else ''} in {where}" for where, count in sorted(pairs.items())
    )
