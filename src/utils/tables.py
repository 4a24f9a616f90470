"""CSV files, read in bounded memory."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from src.utils.io import open_regular
from src.utils.limits import TABLE_BYTES, TABLE_COLUMNS, TABLE_LINE, TABLE_ROWS


class TableError(ValueError):
    """A file is not a CSV table that can be read; the message does not name the file."""


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
    """Yield the lines of a file; never hold more than one line's limit."""
    longest = TABLE_LINE.value
    for number, line in enumerate(iter(lambda: text.readline(longest + 1), ""), start=1):
        if len(line) > longest:
            _check(f"line {number}: {TABLE_LINE.excess(len(line))}")
        if "\0" in line:
            raise TableError(f"line {number} holds a NUL byte, so this is not a text file")
        yield line


def _check(excess: str) -> None:
    if excess:
        raise TableError(f"refused as too large: {excess}")
