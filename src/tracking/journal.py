"""Journal on disk of the items that a server may not hold yet.

The journal has one line per item, one more when it is sent, and one when it is done. A result is done when a
comparison has found it on the server; the server's answer alone does not prove that. Each line has a
checksum, so that a flipped byte on disk is noticed. The journal and its files are in the folder
``undelivered`` in the run's folder, with relative paths, so that the run's folder can be moved.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import Timeout

from ..errors import TrackingError, UserError
from ..utils.cli import warn
from ..utils.io import atomic_write_bytes, file_lock, is_locked
from .names import ERROR, HEARTBEAT, SYSTEM_PREFIX

FOLDER = "undelivered"
_FILE, _LOCK = "journal.jsonl", "lock"
_PATIENCE = 0.2  # seconds; a process that only checks the lock holds it for a moment
_SPARE = 256 * 1024  # the file is rewritten once it has at least so many bytes of obsolete lines
_LINE = re.compile(rb'\{"crc": "([0-9a-f]{8})", (.*)', re.DOTALL)

METRICS, TAGS, PARAMS, DATASETS = "metrics", "tags", "params", "datasets"
ARTIFACT, MODEL, STATUS = "artifact", "model", "status"
KINDS = (METRICS, TAGS, PARAMS, DATASETS, ARTIFACT, MODEL, STATUS)


@dataclass
class Item:
    """An item to deliver.

    Attributes:
        number: The number of the item in its journal, from 1.
        kind: One of `KINDS`.
        content: Plain values, as `src.tracking.delivery` reads them.
        attempts: How many attempts have failed.
        is_doubtful: Whether it may have arrived already: an attempt failed, or its process has died.
        is_sent: Whether the server has confirmed it.
    """

    number: int
    kind: str
    content: dict[str, Any]
    attempts: int = 0
    is_doubtful: bool = False
    is_sent: bool = False

    @property
    def is_result(self) -> bool:
        """Return whether the run is FINISHED only once a comparison has found it on the server.

        Heartbeats and system metrics are many, and no result depends on them.
        """
        if self.kind == METRICS:
            return not all(key.startswith(SYSTEM_PREFIX) for key in self.content["values"])
        return self.kind != STATUS and not (self.kind == TAGS and set(self.content) == {HEARTBEAT})

    @property
    def target(self) -> str | None:
        """Return the file or tags that it writes; a later item with the same target replaces it."""
        if self.kind == TAGS:
            return f"tags {sorted(self.content)}"
        return f"{self.content['folder']}/{self.content['name']}" if self.kind == ARTIFACT else None


@dataclass
class Journal:
    """The journal of one run; its owner holds the lock.

    Attributes:
        folder: The folder ``undelivered``.
        run_id: The run.
        store: The URI of the run's store, without a password.
        pending: The items that the server may not hold, in order.
        last: The highest number so far.
        damaged: The numbers of lines that cannot be read.
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
        """Create the journal of a run, or continue the one of an earlier process.

        The end that the earlier process recorded is dropped, since the run continues. So are damaged
        lines, since a resumed run records all its epochs and results again.
        """
        journal = cls.read(results) if cls.exists(results) else cls(results / FOLDER, run_id, store)
        if journal.damaged:
            warn(f"{journal.where_damaged}: the run records all its epochs and results again")
            journal.damaged.clear()
        for item in list(journal.pending.values()):
            if item.kind == STATUS or (item.kind == TAGS and ERROR in item.content):
                del journal.pending[item.number]
        journal._rewrite()
        return journal

    @classmethod
    def read(cls, results: Path, *, repair: bool = True) -> Self:
        """Read a journal, without a last line that a kill or a full disk has truncated.

        Args:
            results: The folder of the run.
            repair: Remove such a line, which only the holder of the lock may do.

        Raises:
            UserError: The journal does not name its run.
        """
        path = results / FOLDER / _FILE
        data = path.read_bytes()
        *lines, tail = data.split(b"\n")
        if _has_checksum(tail[:-1]):  # complete: only its line feed is damaged
            lines.append(tail)
            if repair:
                with path.open("ab") as file:
                    file.write(b"\n")
        elif repair and tail:
            os.truncate(path, len(data) - len(tail))
        header = _decode(lines[0], needs_checksum=False) if lines else None
        if header is None or not {"run_id", "store"} <= set(header):
            raise UserError(
                f"{path}, line 1: it names no run, so nothing can be delivered. Replace that line with "
                '{"run_id": "ID OF THE RUN", "store": "URI OF THE STORE"}'
            )
        journal = cls(path.parent, str(header["run_id"]), str(header["store"]), _base=len(data))
        for number, line in enumerate(lines[1:], 2):
            record = _decode(line, needs_checksum=_has_checksum(lines[0]))
            if record is None or not journal._replay(record):
                journal.damaged.append(number)
        return journal

    @staticmethod
    def exists(results: Path) -> bool:
        """Return whether a run has left anything to deliver."""
        return (results / FOLDER / _FILE).is_file()

    def _replay(self, record: dict[str, Any]) -> bool:
        """Apply one line; return False if it is not valid."""
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
        """Return which lines are damaged, for messages."""
        lines = f"line{'s' * (len(self.damaged) != 1)} {', '.join(map(str, self.damaged))}"
        return f"{self._path}, {lines}: damaged on disk, so what was recorded there is unknown"

    @property
    def unsent(self) -> list[Item]:
        """Return the items that the server has not confirmed, in order."""
        return [item for item in self.pending.values() if not item.is_sent]

    @property
    def sent(self) -> list[Item]:
        """Return the items that the server has confirmed but that no comparison has verified yet."""
        return [item for item in self.pending.values() if item.is_sent]

    @property
    def _path(self) -> Path:
        return self.folder / _FILE

    def reserve(self, *, with_folder: bool = False) -> int:
        """Return the number of the next item, and create an empty folder for its files if asked."""
        self.last += 1
        if with_folder:
            folder = self.folder_of(self.last)
            shutil.rmtree(folder, ignore_errors=True)  # of a process that died before it wrote the line
            folder.mkdir(parents=True)
        return self.last

    def folder_of(self, number: int) -> Path:
        """Return the folder of an item's files."""
        return self.folder / str(number)

    def add(self, number: int, kind: str, content: dict[str, Any]) -> Item:
        """Write an item that is to be delivered.

        Raises:
            OSError: It could not be written; the journal is unchanged.
        """
        # First in memory: after a signal there is then an item too many rather than one too few.
        item = self.pending[number] = Item(number, kind, content)
        try:
            self._write(_record(item), durable=True)
        except OSError:
            del self.pending[number]
            raise
        return item

    def arrived(self, item: Item) -> None:
        """Write that the server has confirmed an item; a result stays until a comparison finds it there."""
        if not item.is_result:
            self.done(item)
            return
        item.is_sent = True
        with contextlib.suppress(OSError):  # on a full disk it is delivered again
            self._write({"sent": item.number})

    def done(self, item: Item) -> None:
        """Write that the server holds an item, or that it is obsolete, and delete its files."""
        self.pending.pop(item.number, None)
        # If the disk is full, it is delivered again, which changes nothing.
        with contextlib.suppress(OSError):
            self._write({"done": item.number})
            # Otherwise the file grows with the run. Damaged lines stay for the user to see.
            if not self.damaged and self._path.stat().st_size > 2 * self._base + _SPARE:
                self._rewrite()
        shutil.rmtree(self.folder_of(item.number), ignore_errors=True)

    def remove(self) -> None:
        """Delete the journal."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _rewrite(self) -> None:
        """Write the pending items to a new file."""
        records = [{"run_id": self.run_id, "store": self.store}, *map(_record, self.pending.values())]
        data = b"".join(map(_encode, records))
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self._path, data)
        self._base = len(data)

    def _write(self, record: dict[str, Any], *, durable: bool = False) -> None:
        line = _encode(record)
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


def _record(item: Item) -> dict[str, Any]:
    sent = {"is_sent": True} if item.is_sent else {}
    return {"number": item.number, "kind": item.kind, "content": item.content, **sent}


def items(count: int) -> str:
    """Return a number of items in words."""
    return f"{count} item{'s' * (count != 1)}"


def is_held(results: Path) -> bool:
    """Return whether a process delivers from the journal of a run."""
    return is_locked(results / FOLDER / _LOCK)


@contextlib.contextmanager
def journal_lock(results: Path) -> Iterator[None]:
    """Hold the lock of a run's journal, from which only one process at a time delivers.

    Raises:
        TrackingError: Another process holds it.
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


def _encode(record: dict[str, Any]) -> bytes:
    rest = json.dumps(record).encode()[1:]
    return b'{"crc": "%08x", ' % zlib.crc32(rest) + rest + b"\n"


def _has_checksum(line: bytes) -> bool:
    """Return whether a line, without its line feed, has a valid checksum."""
    found = _LINE.fullmatch(line)
    return found is not None and zlib.crc32(found[2]) == int(found[1], 16)


def _decode(line: bytes, *, needs_checksum: bool) -> dict[str, Any] | None:
    """Return a line's values, None if it is damaged; earlier versions wrote no checksum."""
    if not _has_checksum(line) and (needs_checksum or _LINE.fullmatch(line)):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
