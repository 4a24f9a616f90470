"""Assigns images to train, val and test: as the data say, by our own split, or as folds."""

from collections.abc import Sequence
from dataclasses import replace

from ..errors import DataError
from ..utils.config import DataConfig
from .demo import DEMO_NAME
from .image_array import ImageArray
from .near_duplicates import group_near_duplicates
from .records import Records, texts
from .split import merge_groups, split_by_fold, split_by_group, split_by_image


def assign_splits(
    records: Records, packs: Sequence[ImageArray], classes: tuple[str, ...], config: DataConfig
) -> tuple[Records, list[str]]:
    """Assign the records to splits, of which a cross-validation divides all but test; notes for the user."""
    by_patient = config.stratify == "patients" or (config.stratify == "auto" and config.root_dir == DEMO_NAME)
    # Splits of earlier versions, which recorded runs depend on, kept only images without patient together.
    groups = records.groups if by_patient else merge_groups(records.groups, _links(records))
    notes = []
    if config.on_near_duplicate == "group":
        if records.splits[0] and config.folds is None:
            raise DataError(
                "data.on_near_duplicate=group needs a split of ours, and the data bring their own; choose "
                "drop, or take their split out"
            )
        groups, note = group_near_duplicates(records, groups, packs, config.near_duplicate_threshold)
        notes.append(note)
    placed = _place(records, groups, classes, config, by_patient=by_patient)
    if config.folds is None:
        return placed, notes
    is_rest = placed.splits != "test"
    rest, rest_groups = placed.take(is_rest), texts(groups)[is_rest].tolist()
    sides = split_by_fold(
        rest_groups, rest.labels.tolist(), folds=config.folds, fold=config.fold, seed=config.split_seed
    )
    return replace(rest, splits=texts(sides)), notes


def _links(records: Records) -> list[tuple[str, str]]:
    """Pairs of groups that have an image in common."""
    first: dict[str, str] = {}
    return [
        (group, other)
        for shas in records.shas.T.tolist()
        for group, sha in zip(records.groups, shas, strict=True)
        if (other := first.setdefault(sha, group)) != group
    ]


def _place(
    records: Records, groups: list[str], classes: tuple[str, ...], config: DataConfig, *, by_patient: bool
) -> Records:
    """The records where the source puts them, else where we do."""
    if records.splits[0]:
        return records
    split = split_by_group if by_patient else split_by_image
    sides = split(
        groups,
        [classes[label] for label in records.labels.tolist()],
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    return replace(records, splits=texts(sides))
