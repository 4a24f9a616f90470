"""A folder's ``manifest.csv``: one line per image, with its label, modality, patient and split."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DataError
from ..utils.tables import TableError, read_rows
from .folders import NamePatterns, listing_of_files
from .listing import UNKNOWN, Listing, Sample, order_classes
from .name_checks import check_classes, name_splits, unify

if TYPE_CHECKING:
    from pandas import DataFrame

NAME = "manifest.csv"

_OR_ALLOW = "or set data.allow_outside_root=true"
NEEDED = ("path", "label", "modality")
_OPTIONAL = ("patient_id", "image_id", "split")
_KNOWN = frozenset(NEEDED + _OPTIONAL)
# How people spell the columns whose loss would go unnoticed: without patients and splits, images leak.
_SYNONYMS = {
    "patient_id": ("patient", "subject", "subjectid", "subjid", "pid", "mrn"),
    "split": ("splits", "set", "subset", "datasplit", "partition", "fold"),
}
_MEANT = {re.sub("[^a-z]", "", name): name for name in NEEDED + _OPTIONAL}
_MEANT |= {other: name for name, others in _SYNONYMS.items() for other in others}
Row = Mapping[str, str]


class Line(NamedTuple):
    """One line: its number, and its cells by column; unknown columns are dropped."""

    number: int
    cells: Row


def list_manifest(
    path: Path, modality: str, patterns: NamePatterns, *, positive_class: str | None, allow_outside: bool
) -> Listing:
    """List one modality of a manifest for training; paths are relative to the folder of the manifest.

    Args:
        path: The CSV file (UTF-8, comma-separated) with the columns ``path, label, modality`` and
            perhaps ``patient_id, image_id, split``; other columns are ignored.
        modality: Which lines to use.
        patterns: Patterns for file names, used if the manifest has no such column.
        positive_class: Class that becomes the last of two, None for alphabetical order.
        allow_outside: Whether files may lie outside of the folder of the manifest.

    Raises:
        DataError: A column is missing, a cell empty or wrong, a file outside the folder, or fewer than two
            classes are found; the message names the line.
    """
    lines = list(read_lines(path, NEEDED))
    modalities = unify(first_occurrences(lines, "modality"), "modality", str(path))
    chosen = [line for line in lines if modalities[line.cells["modality"]] == modality]
    if not chosen:
        there = ", ".join(sorted({line.cells["modality"] for line in lines})) or "none"
        what = f"{path}: no line of modality {modality!r}"
        raise DataError(f"{what}; modalities there: {there[:200]}", public=what)
    splits = name_splits(first_occurrences(chosen, "split"), str(path))
    labels = unify(first_occurrences(chosen, "label"), "class", str(path))
    names = sorted(set(labels.values()))
    check_classes(first_occurrences(chosen, "label"), str(path))
    if len(names) < 2:
        raise DataError(f"{path}: {modality} has the label {names[0]!r} only; expected two or more")
    classes = order_classes(names, positive_class)
    _check_all_or_none(path, chosen, "split")
    _check_all_or_none(path, chosen, "patient_id")
    _check_patterns_unused(path, chosen[0].cells, patterns)
    find_file = file_finder(path, allow_outside=allow_outside)
    numbers = {spelling: classes.index(name) for spelling, name in labels.items()}
    samples = [_sample(line, find_file(line), numbers, splits, patterns) for line in chosen]
    _check_repeats(path, chosen)
    return listing_of_files(path.parent, modality, classes, samples)


def read_lines(path: Path, needed: Sequence[str]) -> Iterator[Line]:
    """Yield the lines of a manifest, with stripped cells.

    Raises:
        DataError: The file is not a valid table, or a needed column or cell is missing.
    """
    try:
        rows = read_rows(path)
        columns = [name.strip() for name in next(rows, (0, []))[1]]
        _check_columns(path, columns, needed)
        for number, cells in rows:
            if any(cell.strip() for cell in cells):
                yield _line(path, number, columns, cells, needed)
    except TableError as error:
        raise DataError(f"{path}: {error}") from None


def _check_columns(path: Path, columns: list[str], needed: Sequence[str]) -> None:
    for name in columns:
        meant = _MEANT.get(re.sub("[^a-z]", "", name.lower()))
        if meant is not None and meant not in columns:
            raise DataError(
                f"{path}: the column {name!r} would be ignored; rename it to {meant}, or remove it"
            )
        if columns.count(name) > 1 and name in NEEDED + _OPTIONAL:
            raise DataError(f"{path}: duplicate column {name!r}")
    missing = [name for name in needed if name not in columns]
    if missing:
        what = f"{path}: no column {', '.join(missing)}"
        others = [name for name in NEEDED + _OPTIONAL if name not in needed]
        must = f"must name {', '.join(needed)} (perhaps {', '.join(others)}), separated by commas"
        if "label" in missing and len(missing) < len(needed):
            must += "; if each class has a column, write the class of each image into one column label"
        there = ", ".join(columns)[:200] or "nothing"
        # A file without a header starts with a patient.
        raise DataError(
            f"{what}; the first line holds {there}, and {must}", public=f"{what}; the first line {must}"
        )


def _line(path: Path, number: int, columns: list[str], cells: list[str], needed: Sequence[str]) -> Line:
    if len(cells) != len(columns):
        raise DataError(f"{path}, line {number}: {len(cells)} cells for {len(columns)} columns")
    found = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if name in _KNOWN}
    for name in needed:
        if not found[name]:
            raise DataError(f"{path}, line {number}: {name} is empty")
    return Line(number, found)


def first_occurrences(lines: Iterable[Line], column: str) -> dict[str, str]:
    """Map each value of a column to its first line; empty cells are skipped."""
    places: dict[str, str] = {}
    for line in lines:
        cell = line.cells.get(column)
        if cell and cell not in places:
            places[cell] = f"line {line.number}"
    return places


def _check_all_or_none(path: Path, lines: list[Line], column: str) -> None:
    without = [line.number for line in lines if not line.cells.get(column)]
    if without and len(without) < len(lines):
        raise DataError(
            f"{path}, line {without[0]}: {column} is empty, as in {len(without)} of {len(lines)} lines of "
            "this modality; either all lines have one, or none"
        )


def _check_repeats(path: Path, lines: Iterable[Line]) -> None:
    first: dict[str, int] = {}
    for line in lines:
        before = first.setdefault(line.cells["path"], line.number)
        if before != line.number:
            raise DataError(f"{path}, line {line.number}: the same file as in line {before}")


def file_finder(manifest: Path, *, allow_outside: bool) -> Callable[[Line], str]:
    """Return a function that returns the file of a line, and refuses a path outside of the root."""
    root = manifest.parent
    real_root = root.resolve()
    is_inside = cache(lambda folder: folder.resolve().is_relative_to(real_root))

    def resolve(cell: str) -> Path:
        if "\0" in cell:
            raise ValueError("holds a NUL")
        if "\\" in cell and not (root / cell).exists():
            raise ValueError("holds backslashes, as Windows writes them; separate folders by /")
        if allow_outside:
            return root / Path(cell).expanduser()
        if Path(cell).is_absolute():
            raise ValueError(f"is absolute; write it relative to the folder of the manifest, {_OR_ALLOW}")
        file = root / cell
        # Resolved, so that neither .. nor a link leads out; folders once each, for there are many files.
        target = file.resolve().parent if file.is_symlink() or file.name == ".." else file.parent
        if not is_inside(target):
            raise ValueError(f"lies outside the folder of the manifest; move the file there, {_OR_ALLOW}")
        return file

    def find(line: Line) -> str:
        try:
            return str(resolve(line.cells["path"]))
        except (ValueError, OSError, RuntimeError) as error:
            raise DataError(
                f"{manifest}, line {line.number}: the path {line.cells['path']!r} {error}",
                public=f"a path in line {line.number} of the manifest is refused; stderr shows it",
            ) from None

    return find


def _check_patterns_unused(path: Path, cells: Row, patterns: NamePatterns) -> None:
    for column, pattern, setting in (
        ("patient_id", patterns.patient_regex, "patient_regex"),
        ("image_id", patterns.image_id_regex, "image_id_regex"),
    ):
        if pattern is not None and column in cells:
            raise DataError(
                f"{path}: has a column {column}, so data.{setting} would be ignored; remove one of the two"
            )


def _sample(line: Line, file: str, labels: Mapping[str, int], splits: Row, patterns: NamePatterns) -> Sample:
    cells = line.cells
    image_id = cells.get("image_id") or patterns.image_id(file)
    if image_id is None and patterns.must_match:
        image_id = cells.get("image_id")  # in training, an empty cell is the id of a patient's only image
    return Sample(
        file,
        cells["path"],
        labels.get(cells.get("label", ""), UNKNOWN),
        cells.get("patient_id") or patterns.patient(file),
        splits.get(cells.get("split", "")),
        image_id,
    )


def list_unlabeled_manifest(
    path: Path, modality: str, modalities: tuple[str, ...], classes: tuple[str, ...], patterns: NamePatterns
) -> Listing:
    """List the images of one modality of a manifest for inference: only the column ``path`` is required.

    Raises:
        DataError: The file is not a manifest, a path is refused, or a class has two spellings.
    """
    return list_unlabeled_lines(
        path, read_lines(path, needed_unlabeled(modalities)), modality, classes, patterns
    )


def needed_unlabeled(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that images need for inference."""
    return ("path", "modality") if len(modalities) > 1 else ("path",)


def lines_of_table(name: str, table: "DataFrame", needed: Sequence[str]) -> list[Line]:
    """Return the rows of a table in memory as lines of a manifest, numbered from 1.

    Raises:
        DataError: A needed column or cell is missing, or a column would be ignored.
    """
    path, columns = Path(name), [str(column) for column in table.columns]
    _check_columns(path, columns, needed)
    rows = table.astype(object).where(table.notna(), None).itertuples(index=False, name=None)
    return [_line(path, number, columns, [*map(_cell, row)], needed) for number, row in enumerate(rows, 1)]


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns whole numbers into floats where some are missing
    return "" if value is None else str(value)


def list_unlabeled_lines(
    path: Path,
    given: Iterable[Line],
    modality: str,
    classes: tuple[str, ...],
    patterns: NamePatterns,
) -> Listing:
    """List the images of one modality among lines for inference.

    Raises:
        DataError: A path is refused, or a class has two spellings.
    """
    lines = [line for line in given if line.cells.get("modality", modality) == modality]
    # The listed files may be anywhere: they are only ever decoded as images.
    find_file = file_finder(path, allow_outside=True)
    places = first_occurrences(lines, "label") | dict.fromkeys(classes, "a class of the model")
    spellings = unify(places, "class", str(path))
    known = {spellings[name]: label for label, name in enumerate(classes)}
    labels = {spelling: known.get(name, UNKNOWN) for spelling, name in spellings.items()}
    samples = [_sample(line, find_file(line), labels, {}, patterns) for line in lines]
    return listing_of_files(path.parent, modality, classes, samples)
