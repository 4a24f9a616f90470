"""What is known of each image file: its state on disk, and what its pixels were found to be."""

import json
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from src.data.images import BadImage, Range, applied_window
from src.data.samples import Sample
from src.utils.io import atomic_write_text

FORMAT = 3
"""Part of every name in the cache: raise it when decoding, hashing or resizing changes."""

_UNKNOWN = -1
_SHARE = 20  # writing the index takes at most one part in so many of the time


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index knows of one file; nothing here depends on the settings: the window is chosen later.

    Attributes:
        size: Bytes of the file.
        mtime_ns: When its content was changed.
        ctime_ns: When it was changed in any way: a file that takes another's place keeps its ``mtime``.
        height: Of the image.
        width: Of the image.
        channels: Of the image, 1 or 3.
        patient: Hash of the patient that the file itself names, empty without.
        sha: SHA-256 of the pixels, empty where ``error`` says why there are none.
        observed: Lowest and highest value.
        full: What the values could be, None for plain 8 bits.
        own: The window that the file asks for.
        error: Why it cannot be read.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    height: int = 0
    width: int = 0
    channels: int = 0
    patient: str = ""
    sha: str = ""
    observed: Range | None = None
    full: Range | None = None
    own: Range | None = None
    error: str = ""

    @classmethod
    def of_file(cls, path: Path) -> "Entry":
        """One that knows the file's state only, or why it has none."""
        try:
            state = path.stat()
        except OSError as gone:
            return cls(_UNKNOWN, 0, 0, error=f"{path}: {gone.strerror}")
        return cls(state.st_size, state.st_mtime_ns, state.st_ctime_ns)

    @property
    def is_done(self) -> bool:
        """Whether the image was decoded, or found to be bad."""
        return bool(self.sha or self.error)

    def describes(self, other: "Entry") -> bool:
        """Whether both are of the same state of a file."""
        return (self.size, self.mtime_ns, self.ctime_ns) == (other.size, other.mtime_ns, other.ctime_ns)

    def with_error(self, bad: BadImage) -> "Entry":
        """What is known of a file that cannot be read."""
        # What may be readable next time gets a size that no file has, so that the index does not match.
        return replace(self, size=self.size if bad.lasting else _UNKNOWN, sha="", error=str(bad))

    def seen_through(self, window: Range | None) -> str:
        """What names the pixels as they are seen; "" for an image that cannot be."""
        return self.sha and f"{self.sha} {applied_window(self.own, self.full, window)}"


@dataclass
class Index:
    """The entries of one root, by the place of a sample below it, and the file that keeps them."""

    path: Path
    entries: dict[str, Entry]
    _written: float = field(default_factory=time.monotonic)
    _took: float = 0.5

    @classmethod
    def load(cls, path: Path) -> "Index":
        """What an earlier process has learned; nothing where that is damaged, as it can be found again."""
        try:
            rows: dict[str, list[object]] = json.loads(path.read_text())
            return cls(path, {key: _from_row(row) for key, row in rows.items()})
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return cls(path, {})

    def forget(self, samples: Iterable[Sample]) -> None:
        """Whatever is known of these is to be found again."""
        for sample in samples:
            self.entries.pop(sample.key, None)

    def look_up(self, sample: Sample) -> Entry:
        """The entry of a file that is unchanged, else one with its state only."""
        fresh, known = Entry.of_file(sample.file), self.entries.get(sample.key)
        return known if known is not None and known.describes(fresh) else fresh

    def learn(self, sample: Sample, entry: Entry) -> None:
        """Adds an entry; `save` keeps it."""
        self.entries[sample.key] = entry

    @property
    def is_due(self) -> bool:
        """Whether so much time has passed that saving takes little of it."""
        return time.monotonic() - self._written > _SHARE * self._took

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        started = time.monotonic()
        atomic_write_text(self.path, json.dumps({key: astuple(entry) for key, entry in self.entries.items()}))
        self._written = time.monotonic()
        self._took = max(self._took, self._written - started)


def _from_row(row: list[object]) -> Entry:
    return Entry(*(tuple(cell) if isinstance(cell, list) else cell for cell in row))  # type: ignore[arg-type]
