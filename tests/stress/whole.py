"""Whether every file below a folder can be read to its end."""

import csv
import json
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from PIL import Image

from src.training.checkpoint import load_checkpoint
from src.utils.config_yaml import parse_yaml
from src.utils.io import TEMP_PREFIX


def unreadable(folder: Path, since: float = 0) -> Iterator[str]:
    """Opens every file as what it is; those that are being written have names of their own, and are left out.

    Args:
        folder: Where to look.
        since: Only at files that were written after this, in seconds since the epoch.

    Yields:
        A file that is not whole, and why.
    """
    for path in sorted(folder.rglob("*")):
        read = READERS.get(path.suffix)
        if read is None or is_temporary(path) or not path.is_file() or path.stat().st_mtime < since:
            continue
        try:
            read(path)
        except Exception as error:  # whatever a reader says of a half-written file
            yield f"{path}: {error!r}"


def is_temporary(path: Path) -> bool:
    """Whether the file, or a folder above it, is in the midst of being written."""
    return any(part.startswith(TEMP_PREFIX) for part in path.parts)


def _table(path: Path) -> None:
    text = path.read_text()
    if not text.endswith("\n"):
        raise ValueError("the last line has no end")
    first, *rows = csv.reader(text.splitlines())
    if any(len(row) != len(first) for row in rows):
        raise ValueError("a line is short")


def _settings(path: Path) -> None:
    if not parse_yaml(path.read_text(), str(path)):
        raise ValueError("empty")


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("a checksum is wrong")


def _database(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        ((found,),) = connection.execute("PRAGMA integrity_check").fetchall()
    if found != "ok":
        raise ValueError(found)


def _image(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


READERS: dict[str, Callable[[Path], object]] = {
    ".pth": load_checkpoint,
    ".pt2": _archive,
    ".csv": _table,
    ".yaml": _settings,
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".db": _database,
    ".png": _image,
}
