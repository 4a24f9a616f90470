"""Index of the image files below one root, so that a later start need not open them."""

import json
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.io import atomic_file, open_regular
from .file_info import COLUMNS, STATE, FileInfo, FileTable, SharedInfo, stat_files
from .listing import Sample
from .npz import Arrays

_SHARE = 20  # writing the index takes at most 1 / _SHARE of the time
DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # zipfile: unknown compression or encryption
    zipfile.BadZipFile,
)


@dataclass
class FileIndex:
    """File information by key, stored as columns in an ``.npz``.

    Attributes:
        path: The ``.npz``.
        table: Information on the files, in columns.
        places: Position in ``table`` by the sample's key.
        learned: Information by key that were added since the last `save`.
    """

    path: Path
    table: FileTable = field(default_factory=lambda: FileTable(np.zeros(0, COLUMNS)))
    places: dict[str, int] = field(default_factory=dict)
    learned: dict[str, FileInfo] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)
    _took: float = 0.5

    @classmethod
    def load(cls, path: Path) -> "FileIndex":
        """Load the index; start with an empty one if it is missing or damaged."""
        try:
            return cls(path, *_read(path))
        except FileNotFoundError:
            return cls._take_over(path)
        except DAMAGED:
            return cls(path)

    @classmethod
    def _take_over(cls, path: Path) -> "FileIndex":
        """Convert the JSON index of an earlier version, so that its images are not decoded again."""
        old, index = path.with_suffix(".json"), cls(path)
        try:
            with open_regular(old) as file:
                rows: dict[str, list[Any]] = json.load(file)
            index.learned = {key: _from_row(row) for key, row in rows.items()}
            index.save()
        except FileNotFoundError:
            return index
        except DAMAGED:
            return cls(path)
        old.unlink()
        return index

    def forget(self, samples: Iterable[Sample]) -> None:
        """Drop samples, so that they are decoded again."""
        for sample in samples:
            self.places.pop(sample.key, None)

    def look_up(self, samples: Sequence[Sample]) -> FileTable:
        """Return the information of unchanged files and the state of all others, without opening files."""
        found = stat_files([sample.file for sample in samples], self.table.numbers)
        keys = [sample.key for sample in samples]
        places = np.fromiter(map(self.places.get, keys, repeat(-1)), np.int64, len(keys))
        positions = np.flatnonzero(places >= 0)
        known = self.table.rows[places[positions]]
        same = np.ones(len(known), bool)
        for name in STATE:
            same &= known[name] == found.rows[name][positions]
        found.rows[positions[same]] = known[same]
        return found

    def learn(self, sample: Sample, info: FileInfo) -> None:
        """Add a file; `save` writes it to disk."""
        self.learned[sample.key] = info

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last save."""
        return time.monotonic() - self._written > _SHARE * self._took

    def save(self) -> None:
        """Write the file atomically."""
        started = time.monotonic()
        self._add_learned()
        with atomic_file(self.path) as file:
            np.savez(
                file,
                rows=self.table.rows,
                keys=_packed("\0".join(self.places)),
                shared=_packed(json.dumps(list(self.table.numbers))),
            )
        self._written = time.monotonic()
        self._took = max(self._took, self._written - started)

    def _add_learned(self) -> None:
        """Merge new files into the columns, replacing older information."""
        kept = {key: place for key, place in self.places.items() if key not in self.learned}
        new = FileTable.of_infos(list(self.learned.values()), self.table.numbers)
        rows = np.concatenate([self.table.rows[list(kept.values())], new.rows])
        self.table = FileTable(rows, self.table.numbers)
        self.places = {key: place for place, key in enumerate([*kept, *self.learned])}
        self.learned = {}


def _read(path: Path) -> tuple[FileTable, dict[str, int]]:
    with open_regular(path) as file:
        arrays = Arrays(file)
        rows, keys = arrays["rows"], _unpacked(arrays["keys"])
        shared = [SharedInfo(*map(_from_cell, row)) for row in json.loads(_unpacked(arrays["shared"]))]
    places = {key: place for place, key in enumerate(keys.split("\0"))} if keys else {}
    if rows.dtype != COLUMNS or rows.shape != (len(places),) or rows["shared"].max(initial=-1) >= len(shared):
        raise ValueError("the columns do not fit")
    return FileTable(rows, {each: number for number, each in enumerate(shared)}), places


def _from_row(row: list[Any]) -> FileInfo:
    size, mtime_ns, ctime_ns, height, width, channels, patient, sha, observed, *others = map(_from_cell, row)
    state = size, mtime_ns, ctime_ns, height, width, channels
    return FileInfo(*state, sha, observed, SharedInfo(patient, *others))


def _from_cell(cell: Any) -> Any:  # noqa: ANN401 -- JSON has lists for tuples
    return tuple(cell) if isinstance(cell, list) else cell


def _packed(text: str) -> NDArray[np.uint8]:
    # File names may hold bytes that are not valid UTF-8.
    return np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)


def _unpacked(text: NDArray[np.uint8]) -> str:
    return text.tobytes().decode(errors="surrogatepass")
