"""The samples of a run: one image of each modality, joined by patient and image id."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from src.data.cache import DecodedImages
from src.errors import DataError
from src.utils.io import sha256

_SHOWN = 5
Key = tuple[str, str]
"""Patient and image id."""


@dataclass(frozen=True, slots=True)
class Record:
    """One sample.

    Attributes:
        rows: Its row in the pack of each modality.
        label: Class index.
        patient: Whose it is, None where unknown.
        shas: SHA-256 of each image's pixels.
        key: Place of the first image below the root.
        split: On which side it is; "" while that is to be decided.
        file_patient: Hash of the patient that the file itself names, "" without.
    """

    rows: tuple[int, ...]
    label: int
    patient: str | None
    shas: tuple[str, ...]
    key: str
    split: str
    file_patient: str = ""

    @property
    def sample(self) -> str:
        """What names the sample by its pixels: the image's hash, or the hash of the hashes of several."""
        return self.shas[0] if len(self.shas) == 1 else sha256("\n".join(self.shas).encode())


@dataclass(frozen=True)
class Joined:
    """The samples, how many images found no partner, and sentences for the user."""

    records: list[Record]
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
    records, notes = _with_patients([records_of(images) for images in decoded])
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
    joined = [_merge([by_key[key] for by_key in keyed], names) for key in common]
    unpaired = sum(len(by_key) - len(common) for by_key in keyed)
    return Joined(joined, unpaired, notes + _describe_unpaired(keyed, names, set(common)))


def records_of(images: DecodedImages) -> list[Record]:
    """One record for each readable image of a modality."""
    return [
        Record(
            (row,),
            sample.label,
            sample.patient,
            (entry.sha,),
            sample.key,
            sample.split or "",
            entry.patient,
        )
        for row, sample, entry in zip(images.rows, images.samples, images.entries, strict=True)
    ]


def _with_patients(records: list[list[Record]]) -> tuple[list[list[Record]], list[str]]:
    """Where nothing else tells the patient, the files themselves may (DICOM's PatientID).

    Raises:
        DataError: Some files tell and others do not, so that a patient could be on two sides.
    """
    unknown = [record for of_one in records for record in of_one if record.patient is None]
    told = {record.file_patient for record in unknown}
    if told <= {""}:
        return records, []
    if len(told) == 1 and len(unknown) > len(records):
        return records, [
            "all files name the same PatientID, which then tells nothing: each image counts as a patient of "
            "its own; data.patient_regex or a manifest's patient_id can tell them apart"
        ]
    if "" in told:
        silent = sum(not record.file_patient for record in unknown)
        raise DataError(
            f"{silent} of {len(unknown)} files name no patient (PatientID) and the others do, so a patient "
            "could be on two sides of the split; tell the patients by data.patient_regex or a manifest's "
            "patient_id (data.patient_regex='(.+)' makes each file a patient of its own)"
        )
    return [[replace(r, patient=r.patient or r.file_patient) for r in of_one] for of_one in records], []


def _keys(decoded: Sequence[DecodedImages], records: list[list[Record]]) -> list[list[Key]]:
    """The key of every record, by the same rule in all modalities: the first that tells images apart."""
    if all(sample.image_id is not None for images in decoded for sample in images.samples):
        return [
            [
                (record.patient or "", sample.image_id or "")
                for record, sample in zip(of_one, images.samples, strict=True)
            ]
            for of_one, images in zip(records, decoded, strict=True)
        ]
    modalities = [images.listing.modality for images in decoded]
    is_known = all(record.patient is not None for of_one in records for record in of_one)
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


def _by_key(keys: list[Key], records: list[Record], modality: str) -> dict[Key, Record]:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        first, second = [record.key for key, record in zip(keys, records, strict=True) if key == repeated[0]][
            :2
        ]
        raise DataError(
            f"{modality}: {first} and {second} are of the same patient and image id, so it is open which to "
            "join; tell them apart by data.image_id_regex or a manifest's image_id",
            public=f"{modality}: {len(repeated)} pairs of patient and image id stand there twice",
        )
    return dict(zip(keys, records, strict=True))


def _nothing_joins(keyed: list[dict[Key, Record]], names: list[str]) -> DataError:
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


def _merge(parts: list[Record], names: list[str]) -> Record:
    first = parts[0]
    for part, name in zip(parts[1:], names[1:], strict=True):
        for what in ("label", "split"):
            if getattr(part, what) != getattr(first, what):
                raise DataError(
                    f"{first.key} ({names[0]}) and {part.key} ({name}) belong together and differ in {what}; "
                    "mend the one that is wrong",
                    public=f"images of {names[0]} and {name} that belong together differ in {what}",
                )
    return replace(
        first,
        rows=tuple(row for part in parts for row in part.rows),
        shas=tuple(sha for part in parts for sha in part.shas),
    )


def _describe_unpaired(keyed: list[dict[Key, Record]], names: list[str], common: set[Key]) -> list[str]:
    """How many images, and how many patients altogether, are left out for want of a partner."""
    alone = [[key for key in by_key if key not in common] for by_key in keyed]
    if not any(alone):
        return []
    counts = ", ".join(f"{len(keys)} of {name}" for name, keys in zip(names, alone, strict=True) if keys)
    patients = {key[0] for keys in alone for key in keys} - {key[0] for key in common}
    files = [by_key[key].key for by_key, keys in zip(keyed, alone, strict=True) for key in keys]
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return [
        f"images without a partner in every modality are left out: {counts}; {len(patients - {''})} patients "
        f"lose all of theirs ({', '.join(files[:_SHOWN])}{more})"
    ]
