"""Temporary files and folders: which of them nobody will finish."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from .contained import files_below, is_regular_file
from .io import TEMP_PREFIX, is_locked

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
        """Delete it unless it is gone, or its path has become a link."""
        folder = self.path.parent
        if folder.resolve() != Path.cwd().resolve() / folder:
            return
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)


def find_temps(output: Path, *others: Path) -> list[Temp]:
    """Those anywhere below ``output``, and those directly in the other folders; no link is followed."""
    return sorted(_find(output, others), key=lambda temp: temp.path)


def _find(output: Path, others: tuple[Path, ...]) -> Iterator[Temp]:
    pattern = f"{TEMP_PREFIX}*"
    paths = [*output.rglob(pattern), *(path for folder in others for path in folder.glob(pattern))]
    # Only their folder is resolved: a link is a temporary file itself, and what it leads to is not.
    for path in dict.fromkeys(path.parent.resolve() / path.name for path in paths):
        with suppress(FileNotFoundError):  # whoever made it has finished
            age = time.time() - path.lstat().st_mtime
            yield Temp(shown(path), _size(path), age, _is_leftover(path, age))


def _is_leftover(path: Path, age: float) -> bool:
    if is_regular_file(path) and is_locked(path):
        return False
    owner = _OWNER.match(path.name)
    # A minute, for the process may be one of another machine or container that shares the folder.
    is_orphan = owner is not None and not psutil.pid_exists(int(owner[1])) and age > _MINUTE
    return is_orphan or age > _DAY


def _size(path: Path) -> int:
    files = files_below(path) if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files)


def shown(path: Path) -> Path:
    """Return a path for messages: from the working folder on, where it is below that."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path
