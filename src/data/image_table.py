"""Tables of images: find the columns by their roles, take the configured rows, and collect all problems."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DataError
from ..utils.config import DataConfig
from ..utils.config_data import ColumnsConfig
from ..utils.tables import Dialect, TableError, find_dialect, read_rows
from .problems import Problems, nearest

if TYPE_CHECKING:
    from pandas import DataFrame

ROLES = tuple(ColumnsConfig.model_fields)
NEEDED = ("path", "label", "modality")
# How people spell the columns whose loss would go unnoticed: without patients and splits, images leak.
SYNONYMS = {
    "patient_id": ("patient", "subject", "subjectid", "subjid", "pid", "mrn"),
    "split": ("splits", "set", "subset", "datasplit", "partition", "fold"),
}
_MEANT = {other: role for role, others in SYNONYMS.items() for other in others}
_MEANT |= {re.sub("[^a-z]", "", role): role for role in ROLES}
Row = Mapping[str, str]


class Line(NamedTuple):
    """One row: the number of its line, and its cells by role."""

    number: int
    cells: Row


def meant_role(column: str) -> str | None:
    """Return the role that the name of a column suggests, such as patient_id for PatientID."""
    return _MEANT.get(re.sub("[^a-z]", "", column.lower()))


@dataclass(frozen=True)
class ImageTable:
    """The rows of a table that are used.

    Attributes:
        path: The table.
        columns: Roles that have a column.
        lines: The rows.
        labels: The labels of all rows, also of those that are not used.
        notes: Sentences for the user.
    """

    path: Path
    columns: frozenset[str]
    lines: list[Line]
    labels: frozenset[str]
    notes: tuple[str, ...]

    @property
    def where(self) -> str:
        """Return the table's path, for messages."""
        return str(self.path)


def read_table(
    path: Path, config: DataConfig, problems: Problems, needed: Sequence[str], *, is_lenient: bool = False
) -> ImageTable:
    """Read the rows that ``data.where`` takes.

    Args:
        path: The table.
        config: The data section.
        problems: Receives what is wrong with columns and rows.
        needed: Roles that need a column.
        is_lenient: Whether columns may have their usual names as well, and ``data.where`` may name columns
            and values that the table lacks, as for inference.

    Raises:
        DataError: The file is not a table, or has no column of paths.
    """
    try:
        dialect = find_dialect(path, [config.columns.path])
        rows = read_rows(path, dialect)
        header = [name.strip() for name in next(rows, (0, []))[1]]
        table = _take_rows(
            path, header, rows, config, problems=problems, needed=needed, is_lenient=is_lenient
        )
    except TableError as error:
        raise DataError(f"{path}: {error}") from None
    return replace(table, notes=(*_dialect_notes(path, dialect), *table.notes))


def table_in_memory(
    name: str, table: "DataFrame", config: DataConfig, problems: Problems, needed: Sequence[str]
) -> ImageTable:
    """Return the rows of a table in memory, numbered from 1; see `read_table` with ``is_lenient``.

    Raises:
        DataError: It has no column of paths.
    """
    columns = [str(column) for column in table.columns]
    values = table.astype(object).where(table.notna(), None).itertuples(index=False, name=None)
    rows = [(number, [*map(_cell, row)]) for number, row in enumerate(values, 1)]
    for number, cells in rows:
        if not any(cells):
            problems.add(f"{name}, line {number}: path is empty")
    return _take_rows(Path(name), columns, rows, config, problems=problems, needed=needed, is_lenient=True)


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns whole numbers into floats where some are missing
    return "" if value is None else str(value).strip()


def _take_rows(
    path: Path,
    header: list[str],
    rows: Iterable[tuple[int, list[str]]],
    config: DataConfig,
    *,
    problems: Problems,
    needed: Sequence[str],
    is_lenient: bool,
) -> ImageTable:
    notes: list[str] = []
    if is_lenient:
        config, notes = _adapted(path, header, config)
    places = find_columns(path, header, config, problems, needed)
    chosen = _ChosenRows(path, header, config, problems)
    lines = list(chosen.lines(rows, places))
    chosen.report(are_values_optional=is_lenient)
    return ImageTable(path, frozenset(places), lines, frozenset(chosen.labels), (*notes, *chosen.notes()))


def _adapted(path: Path, header: list[str], config: DataConfig) -> tuple[DataConfig, list[str]]:
    """Return the settings with the columns that a table for inference has."""
    names = config.columns.model_dump()
    usual = {role: role for role, name in names.items() if name is not None and name not in header}
    where = {name: values for name, values in (config.where or {}).items() if name in header}
    notes = [
        f"{path}: no column {names[role]!r}; the column {role} is used"
        for role in usual
        if role in header and names[role] != role
    ]
    if skipped := [name for name in config.where or () if name not in header]:
        notes.append(f"{path}: no column {', '.join(skipped)}, so data.where does not choose rows by it")
    columns = ColumnsConfig(**{**names, **{role: role for role in usual if role in header or role != "path"}})
    return config.model_copy(update={"columns": columns, "where": where or None}), notes


def _dialect_notes(path: Path, dialect: Dialect) -> list[str]:
    return [] if dialect.is_plain else [f"{path}: read as {dialect.describe()}"]


def find_columns(
    path: Path, header: list[str], config: DataConfig, problems: Problems, needed: Sequence[str]
) -> dict[str, int]:
    """Return the position of the column of each role; missing and ambiguous columns are problems.

    Raises:
        DataError: A needed column is missing; the message includes the other problems.
    """
    named = {role: name for role, name in config.columns.model_dump().items() if name is not None}
    used = {*named.values(), *(config.where or ())}
    for name in dict.fromkeys(header):
        role = meant_role(name)
        if role in named and named[role] == role and role not in header and name not in used:
            problems.add(
                f"{path}: the column {name!r} would be ignored; rename it to {role}, or set "
                f"data.columns.{role} to its name, or to null to ignore it"
            )
        if header.count(name) > 1 and name in used:
            problems.add(f"{path}: duplicate column {name!r}")
    missing = [role for role in needed if role in named and named[role] not in header]
    if missing and all(named[role] == role for role in missing):
        problems.found.append(_no_columns(path, header, missing, needed))
    elif missing:
        problems.found += [_no_column(path, header, f"data.columns.{role}", named[role]) for role in missing]
    optional = [role for role in named if role not in needed and named[role] != role]
    for role in optional:
        if named[role] not in header:
            problems.found.append(_no_column(path, header, f"data.columns.{role}", named[role]))
    for name in config.where or ():
        if name not in header:
            problems.found.append(_no_column(path, header, "data.where", name))
    if "path" in missing:
        problems.check()
    return {role: header.index(name) for role, name in named.items() if name in header}


def _no_columns(path: Path, header: list[str], missing: Sequence[str], needed: Sequence[str]) -> DataError:
    what = f"{path}: no column {', '.join(missing)}"
    others = [role for role in ROLES if role not in needed]
    must = f"must name {', '.join(needed)} (perhaps {', '.join(others)}), separated by commas"
    if "label" in missing and len(missing) < len(needed):
        must += "; if each class has a column, write the class of each image into one column label"
    must += "; or set data.columns to the names that the table has"
    if missing == ["modality"]:
        must += " (data.columns.modality=null: all images are of one modality)"
    there = ", ".join(header)[:200] or "nothing"
    # A file without a header starts with a patient.
    return DataError(
        f"{what}; the first line holds {there}, and {must}", public=f"{what}; the first line {must}"
    )


def _no_column(path: Path, header: list[str], setting: str, name: str) -> DataError:
    what = f"{path}: no column {name!r} ({setting})"
    return DataError(f"{what}; {nearest(name, header)}", public=what)


class _ChosenRows:
    """The rows that ``data.where`` takes, and counts of the others."""

    def __init__(self, path: Path, header: list[str], config: DataConfig, problems: Problems) -> None:
        self._path, self._header, self._problems = path, header, problems
        where = config.where or {}
        self._rules = [
            (name, header.index(name), set(values)) for name, values in where.items() if name in header
        ]
        self._seen = {name: Counter[str]() for name, *_ in self._rules}
        self._left_out: Counter[str] = Counter()
        self._ragged: list[tuple[int, int]] = []
        self._rows = 0
        self.labels: set[str] = set()

    def lines(self, rows: Iterable[tuple[int, list[str]]], places: Mapping[str, int]) -> Iterator[Line]:
        """Yield the rows to use; count the others."""
        width, label = len(self._header), places.get("label")
        for number, row in rows:
            if not any(cell.strip() for cell in row):
                continue
            self._rows += 1
            if len(row) != width:
                self._ragged.append((number, len(row)))
                continue
            if label is not None:
                self.labels.add(row[label].strip())
            if not self._rules or self._takes(row):
                yield Line(number, {role: row[place].strip() for role, place in places.items()})

    def _takes(self, row: list[str]) -> bool:
        failed = None
        for name, place, values in self._rules:
            cell = row[place].strip()
            self._seen[name][cell] += 1
            if cell not in values and failed is None:
                failed = name
        if failed is not None:
            self._left_out[failed] += 1
        return failed is None

    def report(self, *, are_values_optional: bool) -> None:
        """Add rows of another length, and values that occur in no row, to the problems."""
        path, width = self._path, len(self._header)
        if self._ragged:
            number, cells = self._ragged[0]
            count = len(self._ragged)
            more = f"; {count} of {self._rows} rows have another length" * (count > 1)
            self._problems.add(f"{path}, line {number}: {cells} cells for {width} columns{more}")
        for name, _, values in [] if are_values_optional else self._rules:
            for value in sorted(values - self._seen[name].keys()):
                what = f"{path}: no row has {value!r} in the column {name!r} (data.where)"
                found = nearest(value, [word for word, _ in self._seen[name].most_common(30)])
                self._problems.add(f"{what}; {found}", public=what)

    def notes(self) -> list[str]:
        """Return how many rows are left out by which column."""
        if not self._rules:
            return []
        taken = self._rows - self._left_out.total()
        by = ", ".join(f"{name} {count}" for name, count in self._left_out.items())
        left_out = f" (left out by {by})" * bool(by)
        return [f"{self._path}: data.where takes {taken} of {self._rows} rows{left_out}"]
