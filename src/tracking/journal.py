"""What a server has not confirmed yet, on disk: a line for each item, and one more once it is delivered.

Everything lies in one folder, ``undelivered``, among the results of a run, with paths that start
there, so that the run's folder can be moved. Where the folder is missing, nothing is.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import Timeout

from src.errors import TrackingError, UserError
from src.utils.io import file_lock, is_locked

FOLDER = "undelivered"
_FILE = "journal.jsonl"
_LOCK = "lock"
_PATIENCE = 0.2  # seconds: who only asks whether somebody holds it does so for a moment

METRICS, TAGS, ARTIFACT, MODEL, STATUS = KINDS = ("metrics", "tags", "artifact", "model", "status")


@dataclass
class Item:
    """Something to deliver.

    Attributes:
        number: Counts from 1 in a journal.
        kind: One of `KINDS`.
        content: Plain values, as `src.tracking.delivery` wants them.
        attempts: How often it was tried in vain.
        is_doubtful: It may have arrived already: an attempt failed, or its process has died.
    """

    number: int
    kind: str
    content: dict[str, Any]
    attempts: int = 0
    is_doubtful: bool = False

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
        pending: What is not confirmed, in order.
        last: The highest number so far.
    """

    folder: Path
    run_id: str
    store: str
    pending: dict[int, Item] = field(default_factory=dict)
    last: int = 0
    _header: int = 0

    @classmethod
    def begin(cls, results: Path, run_id: str, store: str) -> Self:
        """Makes the journal of a run, or goes on with the one that an earlier process has left.

        What that process thought of the run's end is forgotten: the run goes on.
        """
        if cls.exists(results):
            journal = cls.read(results)
            for item in [item for item in journal.pending.values() if item.kind == STATUS]:
                journal.done(item)
        else:
            journal = cls(results / FOLDER, run_id, store)
            journal._write({"run_id": run_id, "store": store})
            journal._header = journal._path.stat().st_size
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
        whole = data[: data.rfind(b"\n") + 1]
        if mend and len(whole) < len(data):
            os.truncate(path, len(whole))
        lines = whole.splitlines()
        records = [record for line in lines if (record := _parse(line)) is not None]
        if not records or not {"run_id", "store"} <= set(records[0]):
            raise UserError(f"{path}: its first line names no run, so nothing can be delivered from it")
        journal = cls(path.parent, str(records[0]["run_id"]), str(records[0]["store"]))
        journal._header = len(lines[0]) + 1
        for record in records[1:]:
            journal._replay(record)
        return journal

    @staticmethod
    def exists(results: Path) -> bool:
        """Whether a run has left anything to deliver."""
        return (results / FOLDER / _FILE).is_file()

    def _replay(self, record: dict[str, Any]) -> None:
        if "done" in record:
            self.pending.pop(record["done"], None)
        elif record.get("kind") in KINDS:
            number = int(record["number"])
            self.pending[number] = Item(number, record["kind"], record["content"], is_doubtful=True)
            self.last = max(self.last, number)

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
            self._write({"number": number, "kind": kind, "content": content}, durable=True)
        except OSError:
            del self.pending[number]
            raise
        return item

    def done(self, item: Item) -> None:
        """Writes down that an item has arrived, or is no longer needed, and removes its files."""
        self.pending.pop(item.number, None)
        # Not written on a full disk: then it is delivered again, which changes nothing.
        with contextlib.suppress(OSError):
            self._write({"done": item.number})
            if not self.pending:  # a long run would make a long file
                os.truncate(self._path, self._header)
        shutil.rmtree(self.place(item.number), ignore_errors=True)

    def remove(self) -> None:
        """Removes a journal with nothing left to deliver."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, record: dict[str, Any], *, durable: bool = False) -> None:
        line = json.dumps(record).encode() + b"\n"
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


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


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
