"""Images of a source (demo, folder, manifest or ``.npz``): listed for training, loaded for inference."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..demo.demo import DEMO_NAME, DEMO_PATIENT_REGEX, make_demo
from ..errors import DataError
from ..utils.config import DataConfig
from ..utils.tables import TABLE_ENDINGS
from .contents import describe_contents
from .decode_cache import decode_listings
from .file_info import concatenate_tables
from .folders import NamePatterns, list_folder, list_unlabeled_folder, listing_of_files, unlabeled_sample
from .image_array import Images, ImageSource
from .image_files import SUFFIXES, is_image
from .join_modalities import Records, StepResult, join, to_records
from .listing import Listing
from .manifest import NAME as MANIFEST_NAME
from .manifest import list_manifest, list_unlabeled_manifest
from .name_checks import check_patients, unify
from .npz import list_npz, list_unlabeled_npz
from .windows import blank_notes, describe_corrected


def list_modalities(config: DataConfig, cache_dir: Path) -> list[Listing]:
    """List the images of each configured modality for training, without reading pixels.

    The demo is made in ``cache_dir`` on first use.

    Raises:
        DataError: No usable images are found; the message states what was expected and what was found.
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
    """Return the listings with one spelling per patient, so that no patient is in two splits."""
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
    _check_pattern(config.patient_regex, "patient_regex")
    _check_pattern(config.image_id_regex, "image_id_regex")
    patterns = NamePatterns(config.patient_regex, config.image_id_regex)
    if config.root_dir == DEMO_NAME:
        patterns = replace(patterns, patient_regex=config.patient_regex or DEMO_PATIENT_REGEX)
        layout, root = "folder", make_demo(cache_dir)
    else:
        layout, root = _find_layout(Path(config.root_dir).expanduser())
    positive = config.positive_class
    if layout == "manifest":
        return list_manifest(root, modality, config, patterns)
    if layout == "folder":
        return list_folder(root, modality, patterns, config.exclude, positive)
    if layout == "missing":
        raise DataError(
            f"{root}: not found; --data takes demo, a folder "
            f"ROOT/{modality}/{{train,val,test}}/CLASS/*, a folder ROOT/{modality}/CLASS/*, "
            "a folder with a manifest.csv, or a MedMNIST .npz"
        )
    if len(config.modalities) > 1:
        raise DataError(f"{root}: an .npz holds one modality; choose one of {', '.join(config.modalities)}")
    if config.patient_regex or config.image_id_regex:
        raise DataError(f"{root}: an .npz has no file names for data.patient_regex or data.image_id_regex")
    return list_npz(root, modality, positive)


def _list_unlabeled(
    path: str, modality: str, config: DataConfig, classes: tuple[str, ...], cache_dir: Path
) -> Listing:
    """List one modality for inference: any layout, labels optional, no split."""
    root = Path(path).expanduser()
    patterns = NamePatterns(config.patient_regex, config.image_id_regex, must_match=False)
    if path == DEMO_NAME and not root.exists():
        root = make_demo(cache_dir)
        patterns = replace(patterns, patient_regex=config.patient_regex or DEMO_PATIENT_REGEX)
    layout, root = _find_layout(root)
    if layout == "manifest":
        return list_unlabeled_manifest(root, modality, config, classes, patterns)
    if layout == "folder":
        if len(config.modalities) > 1 and not (root / modality).is_dir():
            raise DataError(f"{root}: no folder {modality}; the model stacks {', '.join(config.modalities)}")
        return list_unlabeled_folder(root, modality, classes, patterns, config.exclude)
    if layout == "missing":
        raise DataError(f"{root}: not found; expected an image, a folder, a manifest.csv or an .npz")
    if len(config.modalities) > 1:
        raise DataError(
            f"{root}: one file holds one modality, and this model stacks {', '.join(config.modalities)}; "
            "expected a folder with a folder for each, or a manifest"
        )
    if is_image(str(root)):
        sample = unlabeled_sample(str(root), root.name, classes, patterns)
        return listing_of_files(root.parent, modality, classes, [sample])
    return list_unlabeled_npz(root, modality, classes)


def _find_layout(root: Path) -> tuple[str, Path]:
    """Return the layout of a source (manifest, folder, file, or missing) and the path to read."""
    # Whether a path is what its name promises is checked where it is opened.
    if root.suffix.lower() in TABLE_ENDINGS and root.exists() and not root.is_dir():
        return "manifest", root
    if (root / MANIFEST_NAME).exists():
        return "manifest", root / MANIFEST_NAME
    if root.is_dir():
        return "folder", root
    return ("file" if root.exists() else "missing"), root


def _check_pattern(pattern: str | None, setting: str) -> None:
    try:
        if pattern is not None and re.compile(pattern).groups < 1:
            raise DataError(rf"data.{setting}: no group in {pattern!r}; for p0001_2.png write ^(p\d+)_")
    except re.error as error:
        raise DataError(f"data.{setting}: {pattern!r} is not a valid regular expression: {error}") from None


@dataclass(frozen=True)
class Inputs:
    """Images as a network takes them, in the order of their names.

    Attributes:
        records: One per sample; the label is `UNKNOWN` if it is not known.
        images: The images, to be read in batches.
        bad: One message per image that could not be read.
        notes: Sentences to show.
        corrected: Kinds and counts of files that earlier versions decoded incorrectly, "" if none.
    """

    records: Records
    images: Images
    bad: tuple[str, ...]
    notes: tuple[str, ...]
    corrected: str

    def __len__(self) -> int:
        return len(self.records)


def load_inputs(path: str, config: DataConfig, classes: tuple[str, ...], cache_dir: Path) -> Inputs:
    """List and decode images for inference.

    A folder may have any layout: every image below it is taken, or below its subfolder named as the
    modality where it has one. An image's class is known where exactly one folder on its path is named as a
    class, where a manifest's ``label`` names one, or from the labels of an ``.npz``.

    Args:
        path: An image, a folder, a manifest (or a folder that holds one), an ``.npz``, or ``demo``.
        config: The data section of the model's run, in which nothing is ``auto``.
        classes: The model's.
        cache_dir: Folder of the decode cache and of the demo.

    Raises:
        DataError: No usable images are found, or none can be read; the message states the reason.
    """
    listings = [_list_unlabeled(path, modality, config, classes, cache_dir) for modality in config.modalities]
    return load_listings(listings, config, cache_dir)


def load_listings(listings: Sequence[Listing], config: DataConfig, cache_dir: Path) -> Inputs:
    """Decode images for inference, one listing per modality; see `load_inputs`."""
    for listing in listings:
        if not listing.samples:
            why = "".join(f". {note}" for note in (*listing.notes, describe_contents(listing.root)))
            raise DataError(
                f"{listing.root}: no images found; expected an image, a folder with images anywhere below "
                f"it, a manifest or an .npz, of {', '.join(sorted(SUFFIXES))}{why}"
            )
    decoded = decode_listings(listings, config, cache_dir)
    joined = join(decoded) if len(decoded) > 1 else StepResult(to_records(decoded[0]), [])
    table = concatenate_tables([images.table for images in decoded])
    listed = dict.fromkeys(note for listing in listings for note in listing.notes)
    return Inputs(
        joined.records,
        ImageSource(tuple(images.pixels for images in decoded), joined.records.rows),
        tuple(message for images in decoded for message in images.bad),
        (*listed, *joined.notes, *blank_notes(table, config.window)),
        describe_corrected(table, config.window),
    )
