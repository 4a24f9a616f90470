"""Images to put a trained model to: whatever layout they come in, labelled or not, without a split."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..demo.demo import DEMO_NAME, DEMO_PATIENT_REGEX, make_demo
from ..errors import DataError
from ..utils.config import DataConfig
from . import manifest
from .cache import decode_listings
from .entries import join_entries
from .folders import listing_of_files
from .image_array import ImageArray, ImageSource
from .image_files import SUFFIXES, Exclude, LeftOut, image_files, is_image
from .join import Records, join, records_of
from .names import unify
from .npz import Arrays, images_of, labels_of, listing_of_arrays, open_arrays
from .pixels import Pixels
from .samples import Listing, Sample
from .windows import blank_notes, describe_corrected

UNKNOWN = -1
"""The label of an image whose class is not told."""
_IMAGES, _LABELS = "images", "labels"


@dataclass(frozen=True)
class Inputs:
    """Images as a network takes them, in the order of their names.

    Attributes:
        records: One per sample; the label of one is `UNKNOWN` where it is not told.
        packs: The decoded images of each modality.
        bad: One message per image that could not be read.
        notes: Sentences to show.
        corrected: Kinds and numbers of files that earlier versions read wrongly, "" without.
    """

    records: Records
    packs: tuple[ImageArray, ...]
    bad: tuple[str, ...]
    notes: tuple[str, ...]
    corrected: str

    def __len__(self) -> int:
        return len(self.records)

    @property
    def images(self) -> ImageSource:
        """The images, to be read in batches."""
        return ImageSource(self.packs, self.records.rows)


def load_inputs(path: str, config: DataConfig, classes: tuple[str, ...], cache_dir: Path) -> Inputs:
    """Finds and decodes the images that are to be put to a model.

    A folder may have any layout: every image below it is taken, or below its subfolder named as the
    modality where it has one. An image's class is known where exactly one folder on its path is named as a
    class, where a manifest's ``label`` names one, or from the labels of an ``.npz``.

    Args:
        path: An image, a folder, a manifest (or a folder that holds one), an ``.npz``, or ``demo``.
        config: The data section of the model's run, in which nothing is ``auto``.
        classes: The model's.
        cache_dir: Folder of the decode cache and of the demo.

    Raises:
        DataError: There is nothing usable, or no image can be read; the message says why.
    """
    listings = [_list(path, modality, config, classes, cache_dir) for modality in config.modalities]
    for listing in listings:
        if not listing.samples:
            why = "".join(f". {note}" for note in listing.notes)
            raise DataError(
                f"{listing.root}: no images; an image, a folder with images anywhere below it, a manifest or "
                f"an .npz is taken, of {', '.join(sorted(SUFFIXES))}{why}"
            )
    decoded = decode_listings(listings, config, cache_dir)
    if len(decoded) == 1:
        records, notes = records_of(decoded[0]), list[str]()
    else:
        joined = join(decoded)
        records, notes = joined.records, joined.notes
    bad = tuple(message for images in decoded for message in images.bad)
    entries = join_entries([images.entries for images in decoded])
    listed = (note for listing in listings for note in listing.notes)
    return Inputs(
        records,
        tuple(images.pixels for images in decoded),
        bad,
        (*listed, *notes, *blank_notes(entries, config.window)),
        describe_corrected(entries, config.window),
    )


def _list(path: str, modality: str, config: DataConfig, classes: tuple[str, ...], cache_dir: Path) -> Listing:
    root, patient_regex = Path(path).expanduser(), config.patient_regex
    if path == DEMO_NAME and not root.exists():
        root, patient_regex = make_demo(cache_dir), patient_regex or DEMO_PATIENT_REGEX
    names = _Names(classes, patient_regex, config.image_id_regex)
    if (root / manifest.NAME).exists():
        root = root / manifest.NAME
    if root.suffix.lower() == ".csv" and root.exists() and not root.is_dir():
        return _list_manifest(root, modality, config.modalities, names)
    if root.is_dir():
        return _list_folder(root, modality, config, names)
    if not root.exists():
        raise DataError(
            f"{root}: no such file or folder; an image, a folder, a manifest.csv or an .npz is taken"
        )
    if len(config.modalities) > 1:
        raise DataError(
            f"{root}: one file holds one modality, and this model stacks {', '.join(config.modalities)}; "
            "a folder with a folder for each, or a manifest, is needed"
        )
    if is_image(str(root)):
        return listing_of_files(root.parent, modality, classes, [names.sample(str(root), root.name)])
    return _list_npz(root, modality, classes)


@dataclass(frozen=True)
class _Names:
    """What is read from the path of a file, as far as it tells."""

    classes: tuple[str, ...]
    patient_regex: str | None
    image_id_regex: str | None

    def sample(self, file: str, key: str) -> Sample:
        *folders, name = key.split("/")
        told = [folder for folder in folders if folder in self.classes]
        return Sample(
            file,
            key,
            self.label(told[0] if len(told) == 1 else ""),
            _group(self.patient_regex, name),
            None,
            _group(self.image_id_regex, name),
        )

    def label(self, name: str) -> int:
        return self.classes.index(name) if name in self.classes else UNKNOWN


def _group(pattern: str | None, name: str) -> str | None:
    match = re.search(pattern, name) if pattern else None
    return match[1] if match else None


def _list_folder(root: Path, modality: str, config: DataConfig, names: _Names) -> Listing:
    base, modalities = root / modality, config.modalities
    if not base.is_dir():
        if len(modalities) > 1:
            raise DataError(f"{root}: no folder {modality}; the model stacks {', '.join(modalities)}")
        base = root
    left_out = LeftOut()
    files = image_files(base, root, Exclude(config.exclude), left_out)
    samples = [names.sample(file, key) for file, key in files]
    return listing_of_files(root, modality, names.classes, samples, left_out.notes(str(base)))


def _list_manifest(path: Path, modality: str, modalities: tuple[str, ...], names: _Names) -> Listing:
    needed = ("path", "modality") if len(modalities) > 1 else ("path",)
    lines = [
        line for line in manifest.read_lines(path, needed) if line.cells.get("modality", modality) == modality
    ]
    # A list of files to look at may well be of another place; what is read is only ever taken for an image.
    place = manifest.placer(path.parent, allow_outside=True)
    told = manifest.places_of(lines, "label") | dict.fromkeys(names.classes, "a class of the model")
    spellings = unify(told, "class", str(path))
    known = {spellings[name]: label for label, name in enumerate(names.classes)}
    labels = {spelling: known.get(name, UNKNOWN) for spelling, name in spellings.items()}
    return listing_of_files(
        path.parent, modality, names.classes, (_manifest_sample(line, place, names, labels) for line in lines)
    )


def _manifest_sample(
    line: manifest.Line, place: Callable[[str], Path], names: _Names, labels: Mapping[str, int]
) -> Sample:
    cells = line.cells
    try:
        file = place(cells["path"])
    except (ValueError, OSError, RuntimeError) as error:
        raise DataError(f"line {line.number}: the path {cells['path']!r} {error}") from None
    return Sample(
        str(file),
        cells["path"],
        labels.get(cells.get("label", ""), UNKNOWN),
        cells.get("patient_id") or _group(names.patient_regex, file.name),
        None,
        cells.get("image_id") or _group(names.image_id_regex, file.name),
    )


def _list_npz(path: Path, modality: str, classes: tuple[str, ...]) -> Listing:
    with open_arrays(path) as arrays:
        keys = [name for name in arrays if name == _IMAGES or name.endswith(f"_{_IMAGES}")]
        if not keys:
            raise DataError(
                f"{path}: no array named {_IMAGES} or such as test_{_IMAGES}; there are: "
                f"{', '.join(arrays)[:500] or 'none'}"
            )
        images = {_stem(name): images_of(arrays, path, name) for name in keys}
        samples = [sample for name in keys for sample in _samples(arrays, path, name, images, classes)]
    return listing_of_arrays(path, modality, classes, tuple(samples), images)


def _samples(
    arrays: Arrays, path: Path, name: str, images: Mapping[str, Pixels], classes: tuple[str, ...]
) -> Iterator[Sample]:
    own, count = f"{name.removesuffix(_IMAGES)}{_LABELS}", len(images[_stem(name)])
    labels: Iterable[int] = labels_of(arrays, path, own, count) if own in arrays else [UNKNOWN] * count
    for row, label in enumerate(labels):
        known = classes.index(str(label)) if str(label) in classes else UNKNOWN
        yield Sample(str(path), f"{_stem(name)}/{row:07d}", known, None, None)


def _stem(name: str) -> str:
    return name.removesuffix(f"_{_IMAGES}")
