"""CSV files: read them in bounded memory, and escape text that spreadsheets would run as a formula."""

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .io import open_regular
from .limits import TABLE_BYTES, TABLE_COLUMNS, TABLE_LINE, TABLE_ROWS

# Numbers with a sign are not formulas, and are not escaped.
_FORMULA = re.compile(r"(?![+-]?\d+(?:\.\d+)?\Z)[=+\-@\t\r]", re.ASCII)
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")


def is_formula(text: str) -> bool:
    """Return whether spreadsheets may run a cell with this text as a formula."""
    return _FORMULA.match(text) is not None


def escape_formula(text: str) -> str:
    """Put an apostrophe before text that spreadsheets would run; `unescape_formula` gives the text back."""
    return f"'{text}" if is_formula(text) or _ESCAPED.match(text) else text


def unescape_formula(text: str) -> str:
    """Return the text that `escape_formula` escaped."""
    return text[1:] if _ESCAPED.match(text) else text


class TableError(ValueError):
    """A file is not a readable CSV table; the message does not name the file."""


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row of a CSV file (UTF-8, with a byte order mark or without) with its line number.

    Raises:
        TableError: The file is missing, not a regular file, not such a table, or exceeds a limit.
    """
    try:
        with open_regular(path) as file:
            _check(TABLE_BYTES.excess(os.fstat(file.fileno()).st_size))
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            reader = csv.reader(_lines(text), strict=True)
            rows, columns = TABLE_ROWS.value, TABLE_COLUMNS.value
            for count, cells in enumerate(reader, start=1):
                if count > rows:
                    _check(TABLE_ROWS.excess(count))
                if len(cells) > columns:
                    _check(TABLE_COLUMNS.excess(len(cells)))
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise TableError(f"not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except (OSError, csv.Error) as error:
        raise TableError(f"cannot be read as a table: {error}") from None


def _lines(text: TextIO) -> Iterator[str]:
    """Yield the lines of a file; a line that is too long is never read completely."""
    longest = TABLE_LINE.value
    for number, line in enumerate(iter(lambda: text.readline(longest + 1), ""), start=1):
        if len(line) > longest:
            _check(f"line {number}: {TABLE_LINE.excess(len(line))}")
        if "\0" in line:
            raise TableError(f"line {number} contains a NUL byte, so this is not a text file")
        yield line


def _check(excess: str) -> None:
    if excess:
        raise TableError(f"refused as too large: {excess}")
