"""Join the images of all modalities into samples, by patient and image id."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.io import sha256
from .decode_cache import DecodedListing
from .listing import Sample
from .name_checks import hash_patient, unify

_SHOWN = 5
Key = tuple[str, str]
"""Patient and image id."""
Texts = NDArray[np.object_]
"""A column of strings, ``(N,)`` or ``(N, M)``."""


@dataclass(frozen=True)
class Records:
    """The samples in columns: a million objects would take seconds and gigabytes.

    Attributes:
        rows: int64 ``(N, M)``, row of each sample in the array of each modality.
        labels: int64 ``(N,)``, class indices.
        patients: Patient of each sample, None if unknown.
        shas: ``(N, M)``, SHA-256 of each image's pixels.
        keys: Path of each sample's first image, relative to the root.
        splits: ``train``, ``val`` or ``test``; "" until the split is decided.
        file_patients: Hash of the patient named in the file, "" if none.
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

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Records":
        """Return the samples at some positions, or where a mask is set."""
        return Records(*(getattr(self, column.name)[chosen] for column in fields(self)))

    @property
    def samples(self) -> list[str]:
        """Hash of each sample: of its image, or of the hashes of its images."""
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
        """Group of each sample, which must stay in one split: its patient, or its hash if unknown."""
        return [patient or name for patient, name in zip(self.patients, self.samples, strict=True)]


@dataclass(frozen=True)
class StepResult:
    """Result of a step that selects or assigns samples.

    Attributes:
        records: The samples that remain.
        notes: Sentences for the user.
        counts: Numbers to log, such as of the images that were dropped.
    """

    records: Records
    notes: list[str]
    counts: Mapping[str, int] = field(default_factory=dict)


def join(decoded: Sequence[DecodedListing]) -> StepResult:
    """Join the images of several modalities into samples.

    Images with the same patient and image id belong together. Without image ids, the patient suffices if
    each has one image per modality; otherwise the file name decides, or the path below the modality if
    names repeat.

    Raises:
        DataError: Two images of a modality have the same key, joined images differ in label or split, or no
            images can be joined.
    """
    records, notes = _with_patients(decoded)
    if len(records) == 1:
        return StepResult(records[0], notes, {"unpaired_images": 0})
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
    notes += _describe_unpaired(keyed, records, names, set(common))
    return StepResult(_merge(parts, names), notes, {"unpaired_images": unpaired})


def text_column(values: Sequence[str | None]) -> Texts:
    """Make a column of strings."""
    return np.array(values, dtype=object)


def to_records(images: DecodedListing) -> Records:
    """Return the samples of one modality: its readable images."""
    samples, table = images.samples, images.table
    return Records(
        images.rows[:, None],
        np.array([sample.label for sample in samples], dtype=np.int64),
        text_column([sample.patient for sample in samples]),
        text_column(table.shas)[:, None],
        text_column([sample.key for sample in samples]),
        text_column([sample.split or "" for sample in samples]),
        text_column(table.each(lambda shared: shared.patient)),
    )


def _with_patients(decoded: Sequence[DecodedListing]) -> tuple[list[Records], list[str]]:
    """Take unknown patients from the files themselves (DICOM PatientID), if all or none of them name one."""
    records = [to_records(images) for images in decoded]
    unknown = [
        by_file
        for of_one in records
        for by_file, patient in zip(of_one.file_patients, of_one.patients, strict=True)
        if patient is None
    ]
    names = set(unknown)
    if names <= {""}:
        return records, []
    if len(names) == 1 and len(unknown) > len(records):
        return records, [
            "all files have the same PatientID, which is ignored: each image counts as a patient of its "
            "own; set data.patient_regex or patient_id in a manifest to distinguish patients"
        ]
    if "" in names:
        silent = unknown.count("")
        raise DataError(
            f"{silent} of {len(unknown)} files name no patient (PatientID) and the others do, so a patient "
            "could be in two splits; name the patients by data.patient_regex or patient_id in a "
            "manifest (data.patient_regex='(.+)' makes each file a patient of its own)"
        )
    spellings = unify_file_patients(decoded)
    named = []
    for of_one in records:
        by_file = text_column([spellings.get(name, name) for name in of_one.file_patients])
        patients = np.where(of_one.patients == None, by_file, of_one.patients)  # noqa: E711
        named.append(replace(of_one, file_patients=by_file, patients=patients))
    return named, []


def _keys(decoded: Sequence[DecodedListing], records: list[Records]) -> list[list[Key]]:
    """Return the key of every record, by the first rule that distinguishes the images of all modalities."""

    def keys_by(image_id: Callable[[Sample, str], str]) -> list[list[Key]]:
        return [
            [
                (patient or "", image_id(sample, images.listing.modality))
                for patient, sample in zip(of_one.patients, images.samples, strict=True)
            ]
            for of_one, images in zip(records, decoded, strict=True)
        ]

    if all(sample.image_id is not None for images in decoded for sample in images.samples):
        return keys_by(lambda sample, _: sample.image_id or "")
    tried = [keys_by(lambda sample, _: PurePosixPath(sample.key).stem), keys_by(_path_below_modality)]
    if all(patient is not None for of_one in records for patient in of_one.patients):
        tried.insert(0, keys_by(lambda *_: ""))
    return next(
        (keys for keys in tried if all(len(set(of_one)) == len(of_one) for of_one in keys)), tried[-1]
    )


def _path_below_modality(sample: Sample, modality: str) -> str:
    return str(PurePosixPath(sample.key).with_suffix("")).removeprefix(f"{modality}/")


def _by_key(keys: list[Key], records: Records, modality: str) -> dict[Key, int]:
    """Return the position of each key; refuse keys that occur twice."""
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        first, second, *_ = (at for key, at in zip(keys, records.keys, strict=True) if key == repeated[0])
        raise DataError(
            f"{modality}: {first} and {second} have the same patient and image id, so it is unclear which to "
            "join; distinguish them by data.image_id_regex or image_id in a manifest",
            public=f"{modality}: {len(repeated)} duplicate pairs of patient and image id",
        )
    return {key: position for position, key in enumerate(keys)}


def _nothing_joins(keyed: list[dict[Key, int]], names: list[str]) -> DataError:
    examples = "; ".join(
        f"{name} has {_named(key)}"
        for name, by_key in zip(names, keyed, strict=True)
        for key in list(by_key)[:1]
    )
    what = f"no image of {names[0]} has a counterpart in {' and '.join(names[1:])}"
    remedy = "set data.patient_regex and data.image_id_regex so that counterparts agree"
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
                    "correct the wrong one",
                    public=f"images of {names[0]} and {name} that belong together differ in {what}",
                )
    rows = np.concatenate([part.rows for part in parts], axis=1)
    return replace(first, rows=rows, shas=np.concatenate([part.shas for part in parts], axis=1))


def _describe_unpaired(
    keyed: list[dict[Key, int]], records: list[Records], names: list[str], common: set[Key]
) -> list[str]:
    """Describe the images, and the patients, that are dropped for lack of a counterpart."""
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
        f"images without a counterpart in every modality are dropped: {counts}; {len(patients - {''})} "
        f"patients lose all images ({', '.join(files[:_SHOWN])}{more})"
    ]


def unify_file_patients(decoded: Sequence[DecodedListing]) -> dict[str, str]:
    """Map the patient hashes of spelling variants to the hash to use.

    The index holds only hashes, so one file per similar name is read again.

    Raises:
        DataError: Two spellings may be the same patient.
    """
    files: dict[str, dict[str, tuple[DecodedListing, int]]] = {}
    for images in decoded:
        shared = list(images.table.numbers)
        numbers, first = np.unique(images.table.rows["shared"], return_index=True)
        for number, position in zip(numbers.tolist(), first.tolist(), strict=True):
            known = shared[number]
            files.setdefault(known.alike, {}).setdefault(known.patient, (images, position))
    files.pop("", None)
    hashes: dict[str, str] = {}
    for alike in files.values():
        if len(alike) > 1:
            places: dict[str, str] = {}
            for images, position in alike.values():
                sample = images.samples[position]
                places[images.listing.header(sample).patient] = f"file {sample.key}"
            spellings = unify(places, "patient (PatientID)", str(decoded[0].listing.root))
            hashes |= {hash_patient(name): hash_patient(plain) for name, plain in spellings.items()}
    return hashes
