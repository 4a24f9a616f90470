"""The samples of a run: one image of each modality, joined by patient and image id."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.io import sha256
from .cache import DecodedImages
from .names import hash_patient, unify

_SHOWN = 5
Key = tuple[str, str]
"""Patient and image id."""
Texts = NDArray[np.object_]
"""A column of strings, ``(N,)`` or ``(N, M)``."""


class Record(NamedTuple):
    """One sample: key, class index, patient (None where unknown), and the hash that identifies its pixels."""

    key: str
    label: int
    patient: str | None
    sample: str


@dataclass(frozen=True)
class Records:
    """The samples in columns: a million objects would take seconds and gigabytes.

    Attributes:
        rows: int64 ``(N, M)``, the row of each sample in the pack of each modality.
        labels: int64 ``(N,)``, class indices.
        patients: Patient of each sample, None where unknown.
        shas: ``(N, M)``, SHA-256 of each image's pixels.
        keys: Path of each sample's first image, relative to the root.
        splits: ``train``, ``val`` or ``test``; "" until the split is decided.
        file_patients: Hash of the patient named in the file itself, "" if there is none.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    patients: Texts
    shas: Texts
    keys: Texts
    splits: Texts
    file_patients: Texts

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Record]:
        return map(Record, self.keys.tolist(), self.labels.tolist(), self.patients.tolist(), self.samples)

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Records":
        """Return the samples at some positions, or where a mask is set."""
        return Records(*(getattr(self, column.name)[chosen] for column in fields(self)))

    @property
    def samples(self) -> list[str]:
        """Hash that identifies each sample: of its image, or of the hashes of its several images."""
        if self.shas.shape[1] == 1:
            return self.contents
        return [sha256("\n".join(shas).encode()) for shas in self.shas.tolist()]

    @property
    def contents(self) -> list[str]:
        """Hashes of each sample's images, joined in the order of the modalities."""
        first, *others = self.shas.T.tolist()
        return ["+".join(shas) for shas in zip(first, *others, strict=True)] if others else list(first)

    @property
    def groups(self) -> list[str]:
        """Group of each sample that must stay in one split: its patient, or its pixels if unknown."""
        return [patient or name for patient, name in zip(self.patients, self.samples, strict=True)]


@dataclass(frozen=True)
class Joined:
    """The samples, how many images found no partner, and sentences for the user."""

    records: Records
    unpaired: int
    notes: list[str]


def join(decoded: Sequence[DecodedImages]) -> Joined:
    """Joins the images of several modalities; those of one are taken as they are.

    Images belong together where patient and image id are the same. Where no image id is told, the
    patient is enough as long as each has one image per modality; else the file's name decides, or its
    path below the modality where names repeat.

    Raises:
        DataError: Two images of a modality have the same place, partners differ in label or split, or
            no image has its partners.
    """
    records, notes = _with_patients(decoded)
    if len(records) == 1:
        return Joined(records[0], 0, notes)
    names = [images.listing.modality for images in decoded]
    keyed = [
        _by_key(keys, of_one, name)
        for keys, of_one, name in zip(_keys(decoded, records), records, names, strict=True)
    ]
    common = [key for key in keyed[0] if all(key in other for other in keyed)]
    if not common:
        raise _nothing_joins(keyed, names)
    parts = [
        of_one.take(np.array([positions[key] for key in common]))
        for positions, of_one in zip(keyed, records, strict=True)
    ]
    unpaired = sum(len(positions) - len(common) for positions in keyed)
    unpaired_notes = _describe_unpaired(keyed, records, names, set(common))
    return Joined(_merge(parts, names), unpaired, notes + unpaired_notes)


def texts(values: Sequence[str | None]) -> Texts:
    """Make a column of strings."""
    return np.array(values, dtype=object)


def records_of(images: DecodedImages) -> Records:
    """Return the samples of one modality: its readable images."""
    samples, entries = images.samples, images.entries
    return Records(
        images.rows[:, None],
        np.array([sample.label for sample in samples], dtype=np.int64),
        texts([sample.patient for sample in samples]),
        texts(entries.shas)[:, None],
        texts([sample.key for sample in samples]),
        texts([sample.split or "" for sample in samples]),
        texts(entries.each(lambda shared: shared.patient)),
    )


def _with_patients(decoded: Sequence[DecodedImages]) -> tuple[list[Records], list[str]]:
    """Where nothing else tells the patient, the files themselves may (DICOM's PatientID).

    Raises:
        DataError: Some files tell and others do not, or tell it in two spellings, so that a patient could be
            on two sides.
    """
    records = [records_of(images) for images in decoded]
    unknown = [
        by_file
        for of_one in records
        for by_file, patient in zip(of_one.file_patients, of_one.patients, strict=True)
        if patient is None
    ]
    told = set(unknown)
    if told <= {""}:
        return records, []
    if len(told) == 1 and len(unknown) > len(records):
        return records, [
            "all files name the same PatientID, which then tells nothing: each image counts as a patient of "
            "its own; data.patient_regex or a manifest's patient_id can tell them apart"
        ]
    if "" in told:
        silent = unknown.count("")
        raise DataError(
            f"{silent} of {len(unknown)} files name no patient (PatientID) and the others do, so a patient "
            "could be on two sides of the split; tell the patients by data.patient_regex or a manifest's "
            "patient_id (data.patient_regex='(.+)' makes each file a patient of its own)"
        )
    if spellings := unify_file_patients(decoded):
        records = [
            replace(of_one, file_patients=texts([spellings.get(name, name) for name in of_one.file_patients]))
            for of_one in records
        ]
    named = [np.where(of_one.patients == None, of_one.file_patients, of_one.patients) for of_one in records]  # noqa: E711
    return [replace(of_one, patients=names) for of_one, names in zip(records, named, strict=True)], []


def _keys(decoded: Sequence[DecodedImages], records: list[Records]) -> list[list[Key]]:
    """The key of every record, by the same rule in all modalities: the first that tells images apart."""
    if all(sample.image_id is not None for images in decoded for sample in images.samples):
        return [
            [
                (patient or "", sample.image_id or "")
                for patient, sample in zip(of_one.patients, images.samples, strict=True)
            ]
            for of_one, images in zip(records, decoded, strict=True)
        ]
    modalities = [images.listing.modality for images in decoded]
    is_known = all(patient is not None for of_one in records for patient in of_one.patients)
    rules = (_by_patient, _by_name, _by_path) if is_known else (_by_name, _by_path)
    tried = [
        [[rule(r, m) for r in of_one] for of_one, m in zip(records, modalities, strict=True)]
        for rule in rules
    ]
    return next((keys for keys in tried if all(map(_are_distinct, keys))), tried[-1])


def _by_patient(record: Record, _modality: str) -> Key:
    return record.patient or "", ""


def _by_name(record: Record, _modality: str) -> Key:
    return record.patient or "", PurePosixPath(record.key).stem


def _by_path(record: Record, modality: str) -> Key:
    path = PurePosixPath(record.key)
    return record.patient or "", str(path.with_suffix("")).removeprefix(f"{modality}/")


def _are_distinct(keys: list[Key]) -> bool:
    return len(set(keys)) == len(keys)


def _by_key(keys: list[Key], records: Records, modality: str) -> dict[Key, int]:
    """Return the position of each key.

    Raises:
        DataError: A key occurs twice.
    """
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        first, second = [place for key, place in zip(keys, records.keys, strict=True) if key == repeated[0]][
            :2
        ]
        raise DataError(
            f"{modality}: {first} and {second} are of the same patient and image id, so it is open which to "
            "join; tell them apart by data.image_id_regex or a manifest's image_id",
            public=f"{modality}: {len(repeated)} pairs of patient and image id stand there twice",
        )
    return {key: position for position, key in enumerate(keys)}


def _nothing_joins(keyed: list[dict[Key, int]], names: list[str]) -> DataError:
    examples = "; ".join(
        f"{name} has {_named(key)}"
        for name, by_key in zip(names, keyed, strict=True)
        for key in list(by_key)[:1]
    )
    what = f"no image of {names[0]} has a partner in {' and '.join(names[1:])}"
    remedy = "set data.patient_regex and data.image_id_regex so that partners agree"
    return DataError(f"{what}: {examples}; {remedy}", public=f"{what}; {remedy}")


def _named(key: Key) -> str:
    patient, image_id = key
    return " ".join([f"patient {patient!r}"] * bool(patient) + [f"image {image_id!r}"] * bool(image_id))


def _merge(parts: list[Records], names: list[str]) -> Records:
    first = parts[0]
    for part, name in zip(parts[1:], names[1:], strict=True):
        for what, differ in (("label", part.labels != first.labels), ("split", part.splits != first.splits)):
            if differ.any():
                one, other = first.keys[differ.argmax()], part.keys[differ.argmax()]
                raise DataError(
                    f"{one} ({names[0]}) and {other} ({name}) belong together and differ in {what}; "
                    "mend the one that is wrong",
                    public=f"images of {names[0]} and {name} that belong together differ in {what}",
                )
    rows, shas = ([getattr(part, column) for part in parts] for column in ("rows", "shas"))
    return replace(first, rows=np.concatenate(rows, axis=1), shas=np.concatenate(shas, axis=1))


def _describe_unpaired(
    keyed: list[dict[Key, int]], records: list[Records], names: list[str], common: set[Key]
) -> list[str]:
    """How many images, and how many patients altogether, are left out for want of a partner."""
    alone = [[key for key in by_key if key not in common] for by_key in keyed]
    if not any(alone):
        return []
    counts = ", ".join(f"{len(keys)} of {name}" for name, keys in zip(names, alone, strict=True) if keys)
    patients = {key[0] for keys in alone for key in keys} - {key[0] for key in common}
    files = [
        of_one.keys[positions[key]]
        for positions, of_one, keys in zip(keyed, records, alone, strict=True)
        for key in keys
    ]
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return [
        f"images without a partner in every modality are left out: {counts}; {len(patients - {''})} patients "
        f"lose all of theirs ({', '.join(files[:_SHOWN])}{more})"
    ]


def unify_file_patients(decoded: Sequence[DecodedImages]) -> dict[str, str]:
    """Map the hash of each patient that is spelled in another way to the hash to use.

    Only hashes are kept of patients, so one file is read again for each of those that look alike.

    Raises:
        DataError: Two spellings may be the same patient.
    """
    files: dict[str, dict[str, tuple[DecodedImages, int]]] = {}
    for images in decoded:
        shared = list(images.entries.numbers)
        numbers, first = np.unique(images.entries.rows["shared"], return_index=True)
        for number, position in zip(numbers.tolist(), first.tolist(), strict=True):
            known = shared[number]
            files.setdefault(known.alike, {}).setdefault(known.patient, (images, position))
    files.pop("", None)
    hashes: dict[str, str] = {}
    for alike in files.values():
        if len(alike) > 1:
            hashes |= _unify(alike)
    return hashes


def _unify(alike: dict[str, tuple[DecodedImages, int]]) -> dict[str, str]:
    places: dict[str, str] = {}
    for images, position in alike.values():
        sample = images.samples[position]
        places[images.listing.header(sample).patient] = f"file {sample.key}"
    root = next(iter(alike.values()))[0].listing.root
    spellings = unify(places, "patient (PatientID)", str(root))
    return {hash_patient(name): hash_patient(plain) for name, plain in spellings.items() if name != plain}
