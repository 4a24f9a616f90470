"""Patients that the files themselves name (DICOM's PatientID), in one spelling each."""

from collections.abc import Sequence

import numpy as np

from .cache import DecodedImages
from .names import hash_patient, unify


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
