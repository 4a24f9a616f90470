"""Index of the files below one root, so that a later start opens none of them."""

import json
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..utils.io import atomic_file, open_regular
from .entries import COLUMNS, STATE, Entries, Entry, Shared, look_at_files
from .npz import Arrays
from .samples import Sample

_SHARE = 20  # writing the index takes at most one part in so many of the time
DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # what zipfile says of a compression or an encryption that it does not know
    zipfile.BadZipFile,
)


@dataclass
class Index:
    """The entries of one root, stored as columns in an ``.npz``.

    Attributes:
        path: The ``.npz``.
        entries: What is known of each file.
        places: Position in ``entries`` by the sample's key.
        learned: Entries by key that were added since the last `save`.
    """

    path: Path
    entries: Entries = field(default_factory=lambda: Entries(np.zeros(0, COLUMNS)))
    places: dict[str, int] = field(default_factory=dict)
    learned: dict[str, Entry] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)
    _took: float = 0.5

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Load the index; start with an empty one if there is none or it is damaged."""
        try:
            return cls(path, *_read(path))
        except FileNotFoundError:
            return cls._take_over(path)
        except DAMAGED:
            return cls(path)

    @classmethod
    def _take_over(cls, path: Path) -> "Index":
        """Convert the JSON index of an earlier version, so that its images are not decoded again."""
        old, index = path.with_suffix(".json"), cls(path)
        try:
            with open_regular(old) as file:
                rows: dict[str, list[object]] = json.load(file)
            index.learned = {key: _from_row(row) for key, row in rows.items()}
            index.save()
        except FileNotFoundError:
            return index
        except DAMAGED:
            return cls(path)
        old.unlink()
        return index

    def forget(self, samples: Iterable[Sample]) -> None:
        """Drop what is known of some samples, so that they are decoded again."""
        for sample in samples:
            self.places.pop(sample.key, None)

    def look_up(self, samples: Sequence[Sample]) -> Entries:
        """Return the entries of unchanged files, and only the state of all others; opens no file."""
        found = look_at_files([sample.file for sample in samples], self.entries.numbers)
        keys = [sample.key for sample in samples]
        places = np.fromiter(map(self.places.get, keys, repeat(-1)), np.int64, len(keys))
        positions = np.flatnonzero(places >= 0)
        known = self.entries.rows[places[positions]]
        same = np.ones(len(known), bool)
        for name in STATE:
            same &= known[name] == found.rows[name][positions]
        found.rows[positions[same]] = known[same]
        return found

    def learn(self, sample: Sample, entry: Entry) -> None:
        """Add an entry; `save` makes it last."""
        self.learned[sample.key] = entry

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last save for the next one to cost little."""
        return time.monotonic() - self._written > _SHARE * self._took

    def save(self) -> None:
        """Write the file atomically."""
        started = time.monotonic()
        self._add_learned()
        with atomic_file(self.path) as file:
            np.savez(
                file,
                rows=self.entries.rows,
                keys=_packed("\0".join(self.places)),
                shared=_packed(json.dumps(list(self.entries.numbers))),
            )
        self._written = time.monotonic()
        self._took = max(self._took, self._written - started)

    def _add_learned(self) -> None:
        """Move what was learned into the columns, in place of older entries of the same files."""
        kept = {key: place for key, place in self.places.items() if key not in self.learned}
        new = Entries.of_entries(list(self.learned.values()), self.entries.numbers)
        rows = np.concatenate([self.entries.rows[list(kept.values())], new.rows])
        self.entries = Entries(rows, self.entries.numbers)
        self.places = {key: place for place, key in enumerate([*kept, *self.learned])}
        self.learned = {}


def _read(path: Path) -> tuple[Entries, dict[str, int]]:
    with open_regular(path) as file:
        arrays = Arrays(file)
        rows, keys = arrays["rows"], _unpacked(arrays["keys"])
        shared = [Shared(*map(_from_cell, row)) for row in json.loads(_unpacked(arrays["shared"]))]  # type: ignore[arg-type]
    places = {key: place for place, key in enumerate(keys.split("\0"))} if keys else {}
    if rows.dtype != COLUMNS or rows.shape != (len(places),) or rows["shared"].max(initial=-1) >= len(shared):
        raise ValueError("the columns do not fit")
    return Entries(rows, {each: number for number, each in enumerate(shared)}), places


def _from_row(row: list[object]) -> Entry:
    return Entry(*map(_from_cell, row))  # type: ignore[arg-type]


def _from_cell(cell: object) -> object:
    return tuple(cell) if isinstance(cell, list) else cell


def _packed(text: str) -> NDArray[np.uint8]:
    # File names may hold bytes that are not valid UTF-8.
    return np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)


def _unpacked(text: NDArray[np.uint8]) -> str:
    return text.tobytes().decode(errors="surrogatepass")
