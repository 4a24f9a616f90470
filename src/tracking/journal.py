"""What a server is not known to hold, on disk: a line for each item, one more when it is sent, one when done.

A result is done once a comparison has found it at the server; an answer alone does not prove that. Each
line carries a checksum. Everything lies in one folder, ``undelivered``, among the results of a run, with
paths that start there, so that the run's folder can be moved. Where the folder is missing, nothing is.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import Timeout

from ..errors import TrackingError, UserError
from ..utils.cli import warn
from ..utils.io import atomic_write_bytes, file_lock, is_locked
from .journal_lines import decode, encode, has_sum
from .names import ERROR, HEARTBEAT
from .system_metrics import PREFIX

FOLDER = "undelivered"
_FILE = "journal.jsonl"
_LOCK = "lock"
_PATIENCE = 0.2  # seconds: who only asks whether somebody holds it does so for a moment

_SPARE = 256 * 1024  # bytes of lines that are no longer needed, at least, before the file is rewritten

METRICS, TAGS, ARTIFACT, MODEL, STATUS = ("metrics", "tags", "artifact", "model", "status")
PARAMS, DATASETS = ("params", "datasets")
KINDS = (METRICS, TAGS, PARAMS, DATASETS, ARTIFACT, MODEL, STATUS)


@dataclass
class Item:
    """Something to deliver.

    Attributes:
        number: Counts from 1 in a journal.
        kind: One of `KINDS`.
        content: Plain values, as `src.tracking.delivery` wants them.
        attempts: How often it was tried in vain.
        is_doubtful: It may have arrived already: an attempt failed, or its process has died.
        is_sent: The server has answered that it took it.
    """

    number: int
    kind: str
    content: dict[str, Any]
    attempts: int = 0
    is_doubtful: bool = False
    is_sent: bool = False

    @property
    def is_result(self) -> bool:
        """Return whether it is compared with what the server holds before the run is FINISHED.

        Heartbeats and the machine's load are not: they are many, and no result depends on them.
        """
        if self.kind == METRICS:
            return not all(key.startswith(PREFIX) for key in self.content["values"])
        return self.kind != STATUS and not (self.kind == TAGS and set(self.content) == {HEARTBEAT})

    @property
    def target(self) -> str | None:
        """What it changes, a file or tags; of two for one target the later makes the earlier one needless."""
        if self.kind == TAGS:
            return f"tags {sorted(self.content)}"
        return f"{self.content['folder']}/{self.content['name']}" if self.kind == ARTIFACT else None


@dataclass
class Journal:
    """The journal of one run; its owner holds the lock.

    Attributes:
        folder: ``undelivered``.
        run_id: The run.
        store: The URI that it was made for, without a password.
        pending: What the server is not known to hold, in order.
        last: The highest number so far.
        damaged: The numbers of lines that cannot be read: what they recorded is unknown.
    """

    folder: Path
    run_id: str
    store: str
    pending: dict[int, Item] = field(default_factory=dict)
    last: int = 0
    damaged: list[int] = field(default_factory=list)
    _base: int = 0

    @classmethod
    def begin(cls, results: Path, run_id: str, store: str) -> Self:
        """Makes the journal of a run, or goes on with the one that an earlier process has left.

        What that process thought of the run's end is forgotten: the run goes on. So are damaged lines: a
        resumed run records all its epochs and results again.
        """
        journal = cls.read(results) if cls.exists(results) else cls(results / FOLDER, run_id, store)
        if journal.damaged:
            warn(f"{journal.where_damaged}: the run records all its epochs and results again")
            journal.damaged.clear()
        for item in [item for item in journal.pending.values() if _is_of_end(item)]:
            del journal.pending[item.number]
        journal.folder.mkdir(parents=True, exist_ok=True)
        journal._rewrite()
        return journal

    @classmethod
    def read(cls, results: Path, *, mend: bool = True) -> Self:
        """Reads a journal back; a last line that a kill or a full disk has cut is none.

        Args:
            results: The folder of the run.
            mend: Take such a line away, which only the holder of the lock may.

        Raises:
            UserError: It does not even say which run it is about.
        """
        path = results / FOLDER / _FILE
        data = path.read_bytes()
        *lines, tail = data.split(b"\n")
        if has_sum(tail[:-1]):  # whole, and it is the line feed that is damaged
            lines.append(tail)
            if mend:
                with path.open("ab") as file:
                    file.write(b"\n")
        elif mend and tail:
            os.truncate(path, len(data) - len(tail))
        header = decode(lines[0], needs_sum=False) if lines else None
        if header is None or not {"run_id", "store"} <= set(header):
            raise UserError(
                f"{path}, line 1: it names no run, so nothing can be delivered. Replace that line with "
                '{"run_id": "ID OF THE RUN", "store": "URI OF THE STORE"}'
            )
        journal = cls(path.parent, str(header["run_id"]), str(header["store"]), _base=len(data))
        for number, line in enumerate(lines[1:], 2):
            record = decode(line, needs_sum=has_sum(lines[0]))
            if record is None or not journal._replay(record):
                journal.damaged.append(number)
        return journal

    @staticmethod
    def exists(results: Path) -> bool:
        """Whether a run has left anything to deliver."""
        return (results / FOLDER / _FILE).is_file()

    def _replay(self, record: dict[str, Any]) -> bool:
        """Follow one line; False where it says nothing that can be followed."""
        try:
            match record:
                case {"done": number}:
                    self.pending.pop(number, None)
                case {"sent": number}:
                    if number in self.pending:
                        self.pending[number].is_sent = True
                case {"number": int(number), "kind": kind, "content": dict(content)} if kind in KINDS:
                    sent = bool(record.get("is_sent"))
                    self.pending[number] = Item(number, kind, content, is_doubtful=True, is_sent=sent)
                    self.last = max(self.last, number)
                case _:
                    return False
        except TypeError:  # a number that is a list
            return False
        return True

    @property
    def where_damaged(self) -> str:
        """Return what is wrong with the file, for messages."""
        lines = f"line{'s' * (len(self.damaged) != 1)} {', '.join(map(str, self.damaged))}"
        return f"{self._path}, {lines}: damaged on disk, so what was recorded there is unknown"

    @property
    def unsent(self) -> list[Item]:
        """Return what the server has not taken yet, in order."""
        return [item for item in self.pending.values() if not item.is_sent]

    @property
    def sent(self) -> list[Item]:
        """Return what the server has said that it took, and is not known to hold."""
        return [item for item in self.pending.values() if item.is_sent]

    @property
    def _path(self) -> Path:
        return self.folder / _FILE

    def reserve(self, *, with_folder: bool = False) -> int:
        """The number of the next item, with an empty folder for its files where asked."""
        self.last += 1
        if with_folder:
            place = self.place(self.last)
            shutil.rmtree(place, ignore_errors=True)  # of a process that died before the line was written
            place.mkdir(parents=True)
        return self.last

    def place(self, number: int) -> Path:
        """Where the files of an item lie."""
        return self.folder / str(number)

    def add(self, number: int, kind: str, content: dict[str, Any]) -> Item:
        """Writes down an item that is to be delivered.

        Raises:
            OSError: It could not be written; the journal is as it was.
        """
        # First in memory: a signal that cuts this short then leaves an item too many, not one too few.
        item = self.pending[number] = Item(number, kind, content)
        try:
            self._write(_record(item), durable=True)
        except OSError:
            del self.pending[number]
            raise
        return item

    def arrived(self, item: Item) -> None:
        """Writes down that the server has taken an item: a result stays until a comparison finds it there."""
        if not item.is_result:
            self.done(item)
            return
        item.is_sent = True
        with contextlib.suppress(OSError):  # not written on a full disk: then it is delivered again
            self._write({"sent": item.number})

    def done(self, item: Item) -> None:
        """Writes down that an item is at the server, or no longer needed, and removes its files."""
        self.pending.pop(item.number, None)
        # Not written on a full disk: then it is delivered again, which changes nothing.
        with contextlib.suppress(OSError):
            self._write({"done": item.number})
            # A long run would make a long file; what is damaged stays for its owner to see.
            if not self.damaged and self._path.stat().st_size > 2 * self._base + _SPARE:
                self._rewrite()
        shutil.rmtree(self.place(item.number), ignore_errors=True)

    def remove(self) -> None:
        """Removes a journal with nothing left to deliver."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _rewrite(self) -> None:
        """Writes a file of what is pending, and nothing else."""
        records = [{"run_id": self.run_id, "store": self.store}, *map(_record, self.pending.values())]
        data = b"".join(map(encode, records))
        atomic_write_bytes(self._path, data)
        self._base = len(data)

    def _write(self, record: dict[str, Any], *, durable: bool = False) -> None:
        line = encode(record)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise


def _is_of_end(item: Item) -> bool:
    return item.kind == STATUS or (item.kind == TAGS and ERROR in item.content)


def _record(item: Item) -> dict[str, Any]:
    record = {"number": item.number, "kind": item.kind, "content": item.content}
    return record | {"is_sent": True} if item.is_sent else record


def items(count: int) -> str:
    """A number of items, in words."""
    return f"{count} item{'s' * (count != 1)}"


def is_held(results: Path) -> bool:
    """Whether a process delivers from the journal of a run."""
    return is_locked(results / FOLDER / _LOCK)


@contextlib.contextmanager
def journal_lock(results: Path) -> Iterator[None]:
    """Held for as long as a process delivers from the journal of a run: one at a time does.

    Raises:
        TrackingError: Another process does.
    """
    path = results / FOLDER / _LOCK
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path, timeout=_PATIENCE))
        except Timeout:
            raise TrackingError(
                f"{results}: the run itself, or another sync, delivers from it right now; wait for its end"
            ) from None
        yield
