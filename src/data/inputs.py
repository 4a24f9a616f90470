"""Images for inference: any layout, with or without labels, without a split."""

from dataclasses import dataclass
from pathlib import Path

from ..utils.config import DataConfig
from .cache import decode_listings
from .file_table import concatenate_tables
from .image_array import ImageArray, ImageSource
from .join import Records, join, to_records
from .sources import list_unlabeled
from .windows import blank_notes, describe_corrected


@dataclass(frozen=True)
class Inputs:
    """Images as a network takes them, in the order of their names.

    Attributes:
        records: One per sample; the label is `UNKNOWN` if it is not known.
        packs: The decoded images of each modality.
        bad: One message per image that could not be read.
        notes: Sentences to show.
        corrected: Kinds and counts of files that earlier versions decoded incorrectly, "" if none.
    """

    records: Records
    arrays: tuple[ImageArray, ...]
    bad: tuple[str, ...]
    notes: tuple[str, ...]
    corrected: str

    def __len__(self) -> int:
        return len(self.records)

    @property
    def images(self) -> ImageSource:
        """The images, to be read in batches."""
        return ImageSource(self.arrays, self.records.rows)


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
        DataError: There is nothing usable, or no image can be read; the message says why.
    """
    listings = list_unlabeled(path, config, classes, cache_dir)
    decoded = decode_listings(listings, config, cache_dir)
    if len(decoded) == 1:
        records, notes = to_records(decoded[0]), list[str]()
    else:
        joined = join(decoded)
        records, notes = joined.records, joined.notes
    bad = tuple(message for images in decoded for message in images.bad)
    table = concatenate_tables([images.table for images in decoded])
    listed = (note for listing in listings for note in listing.notes)
    return Inputs(
        records,
        tuple(images.pixels for images in decoded),
        bad,
        (*listed, *notes, *blank_notes(table, config.window)),
        describe_corrected(table, config.window),
    )
