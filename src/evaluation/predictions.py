"""Tables of predictions: one row per sample, every probability in full precision."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..utils.io import atomic_write_text
from ..utils.tables import TableError, escape_formula, read_rows, unescape_formula
from .auc import Floats, Ints

_FIXED = ["sample", "patient", "label", "label_index"]
_FIXED_BEFORE = ["sample", "patient", "label"]  # of earlier versions, whose label is the index
_PREFIX = "p_"
_REMEDY = "name a predictions/*.csv of a run."


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one split.

    Attributes:
        samples: Hash of each sample's pixels, N.
        patients: Index of each sample's patient, None if unknown, N.
        labels: True class indices, (N,).
        probabilities: Class probabilities, (N, K).
        classes: Class names in index order, K.
    """

    samples: tuple[str, ...]
    patients: tuple[int | None, ...]
    labels: Ints
    probabilities: Floats
    classes: tuple[str, ...]


def write_predictions(path: Path, made: Predictions) -> None:
    """Write a CSV table with the columns ``sample, patient, label, label_index, p_{class}...`` atomically.

    ``label`` is the name of the class, as in the tables of ``src.predict``. The cell of an unknown patient
    is empty. Probabilities are read back exactly.

    Raises:
        ValueError: The lengths do not match.
    """
    size, shape = (len(made.samples), len(made.classes)), made.probabilities.shape
    if shape != size:
        raise ValueError(f"{shape} probabilities, {size[0]} samples, {size[1]} classes")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_FIXED, *(_PREFIX + name for name in made.classes)])
    names = [escape_formula(name) for name in made.classes]
    rows = zip(made.samples, made.patients, made.labels, made.probabilities, strict=True)
    for sample, patient, label, row in rows:
        shown = "" if patient is None else int(patient)
        table.writerow([sample, shown, names[label], int(label), *(repr(float(p)) for p in row)])
    atomic_write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read a table that `write_predictions` wrote, of this version or an earlier one.

    Earlier versions have no column ``label_index`` and hold the index in ``label``.

    Raises:
        DataError: The file is missing or not such a table; the message names the line.
    """
    try:
        rows = [cells for _, cells in read_rows(path)]
    except TableError as error:
        raise DataError(f"{path}: no predictions can be read here ({error}); {_REMEDY}") from error
    header = rows[0] if rows else []
    fixed = _FIXED if header[: len(_FIXED)] == _FIXED else _FIXED_BEFORE
    classes = _classes(path, header, fixed)
    parsed = [_row(path, line, row, classes, len(fixed)) for line, row in enumerate(rows[1:], start=2)]
    samples, patients, labels, values = zip(*parsed, strict=True) if parsed else ((), (), (), ())
    probabilities = np.array(values, dtype=np.float64).reshape(len(parsed), len(classes))
    return Predictions(samples, patients, np.array(labels, dtype=np.int64), probabilities, classes)


def _classes(path: Path, header: list[str], fixed: list[str]) -> tuple[str, ...]:
    """Return the class names in a header, after its fixed columns."""
    columns = header[len(fixed) :]
    classes = tuple(column.removeprefix(_PREFIX) for column in columns)
    named = all(column.startswith(_PREFIX) for column in columns)
    if header[: len(fixed)] != fixed or not named or len(set(classes)) != len(classes) or len(classes) < 2:
        raise DataError(
            f"{path}: its first line is {','.join(header)[:200]!r}; a table of predictions starts with "
            f"'{','.join(_FIXED)}' and one {_PREFIX}CLASS for each of two classes or more; {_REMEDY}"
        )
    return classes


def _row(
    path: Path, line: int, cells: list[str], classes: tuple[str, ...], fixed: int
) -> tuple[str, int | None, int, list[float]]:
    """Return the sample, patient, class index and probabilities of one line."""
    try:
        sample, patient, *name, label = cells[:fixed]
        index, probabilities = int(label), cells[fixed:]
        if len(probabilities) != len(classes) or not 0 <= index < len(classes):
            count = len(probabilities)
            raise ValueError(f"label {label} and {count} probabilities for {len(classes)} classes")
        if name and unescape_formula(name[0]) != classes[index]:
            raise ValueError(f"label {name[0]!r} with the label_index {index}, which is {classes[index]!r}")
        return sample, int(patient) if patient else None, index, [float(p) for p in probabilities]
    except ValueError as error:
        raise DataError(f"{path}, row {line}: not a row of predictions ({error}); {_REMEDY}") from error
