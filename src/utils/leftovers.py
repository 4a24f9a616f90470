"""Temporary files and folders: which of them nobody will finish."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from src.utils.io import TEMP_PREFIX, is_locked

_DAY, _MINUTE = 86400.0, 60.0
_OWNER = re.compile(re.escape(TEMP_PREFIX) + r"(\d{1,9})-")


@dataclass(frozen=True)
class Temp:
    """A temporary file or folder.

    Attributes:
        path: Where it is.
        size: Its bytes.
        age: Seconds since it was written to.
        is_leftover: Nobody works on it: for a day, or its process is gone.
    """

    path: Path
    size: int
    age: float
    is_leftover: bool

    def remove(self) -> None:
        """Deletes it; gone is gone, whoever did it."""
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)


def find_temps(output: Path, *others: Path) -> list[Temp]:
    """Those anywhere below ``output``, and those directly in the other folders."""
    return sorted(_find(output, others), key=lambda temp: temp.path)


def _find(output: Path, others: tuple[Path, ...]) -> Iterator[Temp]:
    pattern = f"{TEMP_PREFIX}*"
    paths = [*output.rglob(pattern), *(path for folder in others for path in folder.glob(pattern))]
    for path in dict.fromkeys(path.resolve() for path in paths):
        with suppress(FileNotFoundError):  # whoever made it has finished
            age = time.time() - path.stat().st_mtime
            yield Temp(_shown(path), _size(path), age, _is_leftover(path, age))


def _is_leftover(path: Path, age: float) -> bool:
    if path.is_file() and is_locked(path):
        return False
    owner = _OWNER.match(path.name)
    # A minute, for the process may be one of another machine or container that shares the folder.
    is_orphan = owner is not None and not psutil.pid_exists(int(owner[1])) and age > _MINUTE
    return is_orphan or age > _DAY


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def _shown(path: Path) -> Path:
    """From the working folder on, where it is below that."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path
