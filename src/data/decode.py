"""Reads headers and decodes images; here, or in processes that write what they decode into a pack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..utils.cli import warn
from ..utils.io import sha256
from .entries import Entry
from .image_array import Place
from .images import BadImage, Header, Picture, Pixels, Shown, show
from .names import hash_look, hash_patient
from .samples import Sample


@dataclass(frozen=True)
class Task:
    """One image to decode, and its place in a pack."""

    sample: Sample
    entry: Entry
    place: Place


def look_at_all(header: Callable[[Sample], Header], items: Sequence[tuple[Sample, Entry]]) -> list[Entry]:
    """The entries completed by what the headers of the files say."""
    return [_look_at(header, sample, entry) for sample, entry in items]


def _look_at(read: Callable[[Sample], Header], sample: Sample, entry: Entry) -> Entry:
    try:
        header = read(sample)
    except BadImage as bad:
        return entry.with_error(bad)
    # Hashed, for the index need not know who the patient is, only whose images belong together.
    patient, alike = (hash_patient(name), hash_look(name)) if (name := header.patient) else ("", "")
    return replace(
        entry,
        height=header.height,
        width=header.width,
        channels=header.channels,
        patient=patient,
        format=header.format,
        bits=header.bits,
        alike=alike,
    )


def decode_all(
    read: Callable[[Sample], Picture], shown: Shown, pack: Path, tasks: Sequence[Task]
) -> list[Entry]:
    """Decodes images into their places of a pack; returns the entries completed.

    Raises:
        OSError: The pack cannot be written.
    """
    # Plain writes, no mapping: on a full disk a write fails with an error, a mapped page with SIGBUS.
    with pack.open("rb+", buffering=0) as file:
        return [_decode(read, shown, file.fileno(), task) for task in tasks]


def _decode(read: Callable[[Sample], Picture], shown: Shown, file: int, task: Task) -> Entry:
    try:
        picture = read(task.sample)
        entry = _described(task.entry, picture)
        pixels = show(picture, shown).tobytes()
    except BadImage as bad:
        return task.entry.with_error(bad)
    task.place.write(file, pixels)
    return entry


def decode_again(read: Callable[[Sample], Picture], shown: Shown, sample: Sample, entry: Entry) -> Pixels:
    """Decode an image whose cached pixels are damaged.

    Raises:
        DataError: Its file cannot be read any more, or is not what was cached.
    """
    what = f"{sample.file} ({sample.key}): its decoded image in the cache is damaged"
    try:
        picture = read(sample)
        pixels = show(picture, shown)
    except (BadImage, DataError, OSError) as error:
        raise DataError(
            f"{what}, and the file cannot be read any more ({error}); restore the file and start again",
            public="a decoded image in the cache is damaged, and its file cannot be read any more",
        ) from None
    if sha256(picture.content) != entry.sha:
        raise DataError(
            f"{what}, and the file has other pixels than it had; start again",
            public="a decoded image in the cache is damaged, and its file has other pixels than it had",
        )
    warn(f"{what}; it was decoded again")
    return pixels


def _described(entry: Entry, picture: Picture) -> Entry:
    return replace(
        entry,
        sha=sha256(picture.content),
        observed=(float(picture.values.min()), float(picture.values.max())),
        full=picture.full,
        own=picture.own,
        levels=picture.levels_name,
        corrected=picture.corrected,
    )
