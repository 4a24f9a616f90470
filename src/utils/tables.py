"""Tables as text: read them in bounded memory, and escape text that spreadsheets would run as a formula."""

import codecs
import csv
import io
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

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
    """A file is not a readable table; the message does not name the file."""


TABLE_ENDINGS = (".csv", ".tsv")

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_LINE_ENDS = {"\r\n": "Windows", "\n": "Unix", "\r": "old Mac"}
_HEAD = 2**18  # bytes of which the format is found
_SAMPLE = 50  # rows


class Dialect(NamedTuple):
    """How a table is written.

    Attributes:
        encoding: Python's name of the encoding.
        separator: The character between two cells.
        line_end: The characters after a row.
        has_mark: Whether the file starts with a byte order mark.
    """

    encoding: str = "utf-8-sig"
    separator: str = ","
    line_end: str = "\n"
    has_mark: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is UTF-8 and separated by commas, the usual format."""
        return self[:2] == Dialect()[:2]

    def describe(self) -> str:
        """Return a phrase for the user."""
        encoding = self.encoding.upper().removesuffix("-SIG") + " with a byte order mark" * self.has_mark
        return (
            f"{encoding}, separated by {_SEPARATORS[self.separator]}, {_LINE_ENDS[self.line_end]} line ends"
        )


def find_dialect(path: Path, wanted: Collection[str] = ()) -> Dialect:
    """Find how a table is written, by its first rows.

    A separator is the one that divides the header, and most rows into as many cells. If several do, it is the
    one that gives the ``wanted`` columns.

    Raises:
        TableError: The file cannot be opened, or its encoding or separator is ambiguous.
    """
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise TableError(f"cannot be read as a table: {error}") from None
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise TableError("text in UTF-32; save it as UTF-8")
    is_wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_wide else "utf-8-sig"
    text = head.decode(encoding, errors="replace")
    line_end = re.search("\r\n|\n|\r", text)
    separators = [mark for mark in _SEPARATORS if _divides(text, mark)]
    if len(separators) > 1:
        has_wanted = [mark for mark in separators if set(wanted) <= set(_cells(text, mark)[0])]
        separators = has_wanted if wanted and has_wanted else separators
    if len(separators) > 1:
        names = " or ".join(_SEPARATORS[mark] for mark in separators)
        raise TableError(f"its cells may be separated by {names}; save it with one of them, such as commas")
    return Dialect(
        encoding,
        separators[0] if separators else ",",
        line_end[0] if line_end else "\n",
        is_wide or head.startswith(codecs.BOM_UTF8),
    )


def _cells(text: str, separator: str) -> list[list[str]]:
    """Return the first rows with stripped cells; damage is reported when the table is read."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    with suppress(csv.Error):
        return [[cell.strip() for cell in row] for row in islice(reader, _SAMPLE)] or [[]]
    return [[]]


def _divides(text: str, separator: str) -> bool:
    header, *rows = _cells(text, separator)
    filled = [row for row in rows if any(row)]
    return len(header) > 1 and 2 * sum(len(row) == len(header) for row in filled) >= len(filled)


def read_rows(path: Path, dialect: Dialect = Dialect()) -> Iterator[tuple[int, list[str]]]:  # noqa: B008
    """Yield each row of a table with its line number; the default is CSV in UTF-8.

    Raises:
        TableError: The file is missing, not a regular file, not such a table, or exceeds a limit.
    """
    try:
        with open_regular(path) as file:
            _check(TABLE_BYTES.excess(os.fstat(file.fileno()).st_size))
            text = io.TextIOWrapper(file, encoding=dialect.encoding, newline="")
            reader = csv.reader(_lines(text), strict=True, delimiter=dialect.separator)
            rows, columns = TABLE_ROWS.value, TABLE_COLUMNS.value
            for count, cells in enumerate(reader, start=1):
                if count > rows:
                    _check(TABLE_ROWS.excess(count))
                if len(cells) > columns:
                    _check(TABLE_COLUMNS.excess(len(cells)))
                yield reader.line_num, cells
    except UnicodeDecodeError as error:
        encoding = dialect.encoding.upper().removesuffix("-SIG")
        raise TableError(f"not text in {encoding} ({error.reason} at byte {error.start})") from None
    except (OSError, csv.Error) as error:
        raise TableError(f"cannot be read as a table: {error}") from None


def _lines(text: TextIO) -> Iterator[str]:
    """Yield the lines of a file; a line that is too long is never read completely."""
    longest = TABLE_LINE.value
    for number, line in enumerate(iter(lambda: text.readline(longest + 1), ""), start=1):
        if len(line) > longest:
            _check(f"line {number}: {TABLE_LINE.excess(len(line))}")
        if "\0" in line:
            raise TableError(
                f"line {number} contains a NUL byte, so this is not a text file (or UTF-16 without a mark at "
                "its start: save it as UTF-8)"
            )
        yield line


def _check(excess: str) -> None:
    if excess:
        raise TableError(f"refused as too large: {excess}")
