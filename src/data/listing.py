"""The samples of a data source, and the functions that read them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..utils.tables import is_formula
from .pixels import DecodedImage, Header

SPLITS = ("train", "val", "test")
UNKNOWN = -1
"""Label of an image whose class is not known."""


class Sample(NamedTuple):
    """One labeled image; plain strings and no `Path`, since there may be a million of them.

    Attributes:
        file: Path of the image file, or of the ``.npz`` that holds it.
        key: Path relative to the root, or ``{split}/{row}`` in an ``.npz``.
        label: Index into the listing's classes.
        patient: The patient, None if unknown.
        split: ``train``, ``val`` or ``test`` if the source defines it, else None.
        image_id: Identifies one of a patient's images in every modality, None if unknown.
    """

    file: str
    key: str
    label: int
    patient: str | None
    split: str | None
    image_id: str | None = None


@dataclass(frozen=True)
class Listing:
    """All samples of one modality, in an order that does not depend on the disk.

    Attributes:
        root: The folder or ``.npz`` that was listed.
        modality: Its tag.
        classes: Class names; of two, the last is the positive one.
        samples: One per image. Either all of them have a split, or none.
        header: Function that reads the header of a sample without decoding it.
        read: Function that decodes a sample.
        in_memory: Whether the images are in the memory of this process, not in files.
        notes: Sentences for the user, such as on skipped files.
    """

    root: Path
    modality: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    header: Callable[[Sample], Header]
    read: Callable[[Sample], DecodedImage]
    in_memory: bool = False
    notes: tuple[str, ...] = ()


def order_classes(names: list[str], positive: str | None) -> tuple[str, ...]:
    """Return the class names with ``positive`` last, if given.

    Raises:
        DataError: ``positive`` is not one of two names, or a name starts like a formula.
    """
    if formulas := [name for name in names if is_formula(name)]:
        raise DataError(
            f"class {formulas[0]!r}: spreadsheets run text that begins with {formulas[0][0]!r} as a formula, "
            "and tables of predictions hold class names; rename the class (its folder, or its label in the "
            "manifest)"
        )
    if positive is None:
        return tuple(names)
    if positive not in names or len(names) != 2:
        raise DataError(
            f"data.positive_class: expected one of two classes, not {positive!r}; found {', '.join(names)}"
        )
    return tuple(sorted(names, key=lambda name: name == positive))
