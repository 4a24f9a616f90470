"""Guess what the columns of a table of images hold: paths, labels, patients, modalities, splits, views."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..errors import DataError
from ..utils.tables import Dialect, TableError, find_dialect, read_rows
from .contents import Contents
from .image_files import is_image_name
from .image_table import meant_role
from .name_checks import is_like_split

_MOST_CELLS = 5_000_000  # that are read
_LONGEST = 300  # characters of a cell that are kept
_MOST_VALUES = 20_000  # different values of one column that are counted
_MOST_CLASSES = 50
_SAMPLE = 1_000  # values that are compared with files
_MOST_ALIKE = 50  # files of one name
_LABEL = re.compile(
    r"label|class|diagnos|finding|target|dx|categor|patholog|disease|outcome|grade|level|malignan|birads",
    re.I,
)
_VIEW = re.compile(r"view|projection|plane|orientation", re.I)
_OTHER = re.compile(r"date|time|age|url|doi|licen|note|folder|path|file|comment|offset|location|uid", re.I)
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")


@dataclass
class Column:
    """One column: its values with counts, at most `_MOST_VALUES` of them."""

    name: str
    values: Counter[str] = field(default_factory=Counter)
    is_complete: bool = True

    def add(self, cell: str) -> None:
        """Count a cell."""
        cell = cell[:_LONGEST]
        if cell in self.values or len(self.values) < _MOST_VALUES:
            self.values[cell] += 1
        else:
            self.is_complete = False

    @property
    def filled(self) -> Counter[str]:
        """Return the values that are not empty."""
        return Counter({value: count for value, count in self.values.items() if value})


@dataclass(frozen=True)
class Columns:
    """The columns of a table, and the roles they may have; None if no column has it.

    Attributes:
        dialect: How the table is written.
        rows: Number of rows that were read.
        is_complete: Whether these are all rows.
        columns: All columns.
        path: Column of paths.
        images: Folder that paths start at, relative to the table; "" for its own folder.
        labels: Columns that may be the label, best first.
        patient: Column of patients.
        modality: Column of modalities.
        split: Column of splits.
        view: Column of views.
    """

    dialect: Dialect
    rows: int
    is_complete: bool
    columns: tuple[Column, ...]
    path: Column | None
    images: str
    labels: tuple[Column, ...]
    patient: Column | None
    modality: Column | None
    split: Column | None
    view: Column | None


def guess_columns(path: Path, contents: Contents) -> Columns:
    """Read a table (its first rows, if it is very long) and guess the roles of its columns.

    Args:
        path: The table.
        contents: The files below its folder.

    Raises:
        DataError: The file cannot be read as a table.
    """
    try:
        dialect = find_dialect(path)
        rows = read_rows(path, dialect)
        columns = [Column(name.strip()) for name in next(rows, (0, []))[1]]
        count = 0
        for _, cells in islice(rows, _MOST_CELLS // max(len(columns), 1)):
            if any(cell.strip() for cell in cells):
                count += 1
                for column, cell in zip(columns, cells, strict=False):
                    column.add(cell.strip())
        is_complete = next(rows, None) is None
    except TableError as error:
        raise DataError(f"{path}: {error}") from None
    of_paths, images = _find_paths(columns, contents)
    rest = [column for column in columns if column is not of_paths and column.name]
    patient = _by_role(rest, "patient_id")
    split = _first(
        c for c in rest if meant_role(c.name) == "split" and c.filled and all(map(is_like_split, c.filled))
    )
    modality = _first(c for c in rest if c.name.lower() == "modality" and len(c.filled) <= _MOST_CLASSES)
    view = _first(c for c in rest if _VIEW.search(c.name) and 2 <= len(c.filled) <= _MOST_CLASSES)
    taken = {id(column) for column in (patient, split, modality, view) if column is not None}
    labels = sorted((c for c in rest if id(c) not in taken and _is_label(c)), key=_label_rank)
    return Columns(
        dialect=dialect,
        rows=count,
        is_complete=is_complete,
        columns=tuple(columns),
        path=of_paths,
        images=images,
        labels=tuple(labels),
        patient=patient,
        modality=modality,
        split=split,
        view=view,
    )


def _first(columns: Iterable[Column]) -> Column | None:
    return next(iter(columns), None)


def _by_role(columns: Sequence[Column], role: str) -> Column | None:
    named = [column for column in columns if meant_role(column.name) == role and column.filled]
    return _first(sorted(named, key=lambda column: column.name != role))


def _find_paths(columns: Sequence[Column], contents: Contents) -> tuple[Column | None, str]:
    """Return the column whose values are most often images below one of the folders, and that folder."""
    by_name: dict[str, list[str]] = {}
    for key in contents.images:
        by_name.setdefault(key.rpartition("/")[2], []).append(key)
    best: tuple[int, Column | None, str] = (0, None, "")
    for column in columns:
        folders: Counter[str] = Counter()
        for value in islice(column.filled, _SAMPLE):
            keys = by_name.get(value.rpartition("/")[2], [])[:_MOST_ALIKE]
            folders.update(key.removesuffix(value) for key in keys if f"/{key}".endswith(f"/{value}"))
        for folder, hits in folders.most_common(1):
            if hits > best[0]:
                best = (hits, column, folder)
    if best[1] is None:
        return _first(c for c in columns if sum(map(is_image_name, c.filled)) > len(c.filled) / 2), ""
    return best[1], best[2]


def _is_label(column: Column) -> bool:
    filled = column.filled
    if not column.is_complete or not 2 <= len(filled) <= _MOST_CLASSES or filled.total() < 2 * len(filled):
        return False
    are_numbers = all(map(_NUMBER.fullmatch, filled))
    return not _OTHER.search(column.name) and (not are_numbers or len(filled) <= 10)


def _label_rank(column: Column) -> tuple[bool, int, int]:
    return not _LABEL.search(column.name), column.values[""], len(column.values)
