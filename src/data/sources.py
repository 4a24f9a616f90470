"""Finds the images of a modality: the demo, a folder, a manifest, or an ``.npz``, told apart here."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..demo.demo import DEMO_NAME, DEMO_PATIENT_REGEX, make_demo
from ..errors import DataError
from ..utils.config import DataConfig
from . import manifest
from .folders import NamePatterns, list_folder
from .manifest import list_manifest
from .names import check_patients, unify
from .npz import list_npz
from .samples import Listing


def list_modalities(config: DataConfig, cache_dir: Path) -> list[Listing]:
    """Lists the images of each configured modality without reading their pixels.

    Args:
        config: The data section.
        cache_dir: Where the demo is made on first use.

    Raises:
        DataError: Nothing usable is there; the message says what was looked for and what was found.
    """
    listings = [_list_one(config, modality, cache_dir) for modality in config.modalities]
    for listing in listings[1:]:
        if listing.classes != listings[0].classes:
            raise DataError(
                f"{listing.root}: {listings[0].modality} has the classes {', '.join(listings[0].classes)}, "
                f"and {listing.modality} has {', '.join(listing.classes)}; they must be the same"
            )
    return _with_one_spelling(listings)


def _with_one_spelling(listings: Sequence[Listing]) -> list[Listing]:
    """The listings with each patient in one spelling, so that none of them is on two sides of a split.

    Raises:
        DataError: Two spellings may be the same patient, or a name stands for an unknown one.
    """
    places = {s.patient: s.key for listing in listings for s in listing.samples if s.patient is not None}
    where = str(listings[0].root)
    check_patients(places, where)
    changes = {name: plain for name, plain in unify(places, "patient", where).items() if name != plain}
    if not changes:
        return list(listings)
    return [
        replace(
            listing,
            samples=tuple(
                s._replace(patient=changes[s.patient]) if s.patient in changes else s for s in listing.samples
            ),
        )
        for listing in listings
    ]


def _list_one(config: DataConfig, modality: str, cache_dir: Path) -> Listing:
    patterns = NamePatterns(
        _pattern(config.patient_regex, "patient_regex"), _pattern(config.image_id_regex, "image_id_regex")
    )
    if config.root_dir == DEMO_NAME:
        patterns = NamePatterns(patterns.patient or re.compile(DEMO_PATIENT_REGEX), patterns.image_id)
        return list_folder(make_demo(cache_dir), modality, config, patterns)
    root = Path(config.root_dir).expanduser()
    # Whatever else lies there under such a name is refused by its kind where it is opened.
    if root.suffix.lower() == ".csv" and root.exists() and not root.is_dir():
        return list_manifest(root, modality, config, patterns)
    if (root / manifest.NAME).exists():
        return list_manifest(root / manifest.NAME, modality, config, patterns)
    if root.is_dir():
        return list_folder(root, modality, config, patterns)
    if not root.exists():
        raise DataError(
            f"{root}: no such folder or file; --data takes demo, a folder "
            f"ROOT/{modality}/{{train,val,test}}/CLASS/*, a folder ROOT/{modality}/CLASS/*, "
            "a folder with a manifest.csv, or a MedMNIST .npz"
        )
    if len(config.modalities) > 1:
        raise DataError(f"{root}: an .npz holds one modality; choose one of {', '.join(config.modalities)}")
    if patterns.patient or patterns.image_id:
        raise DataError(f"{root}: an .npz has no file names for data.patient_regex or data.image_id_regex")
    return list_npz(root, modality, config.positive_class)


def _pattern(text: str | None, setting: str) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DataError(f"data.{setting}: {text!r} is no regular expression: {error}") from None
    if pattern.groups < 1:
        raise DataError(rf"data.{setting}: {text!r} has no group; for p0001_2.png write ^(p\d+)_")
    return pattern
