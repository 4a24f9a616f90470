"""Reads headers and decodes images; here, or in processes that write what they decode into a pack."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ..errors import DataError
from ..utils.cli import warn
from ..utils.io import sha256
from ..utils.runtime import usable_cores
from .entries import Entry
from .image_array import Place
from .names import hash_look, hash_patient
from .pixels import BadImage, Header, Picture, Pixels, Shown, show
from .samples import Sample


@dataclass(frozen=True)
class Task:
    """One image to decode, and its place in a pack."""

    sample: Sample
    entry: Entry
    place: Place


def look_at_all(header: Callable[[Sample], Header], items: Sequence[tuple[Sample, Entry]]) -> list[Entry]:
    """The entries completed by what the headers of the files say."""
    return [_look_at(header, sample, entry) for sample, entry in items]


def _look_at(read: Callable[[Sample], Header], sample: Sample, entry: Entry) -> Entry:
    try:
        header = read(sample)
    except BadImage as bad:
        return entry.with_error(bad)
    # Hashed, for the index need not know who the patient is, only whose images belong together.
    patient, alike = (hash_patient(name), hash_look(name)) if (name := header.patient) else ("", "")
    return replace(
        entry,
        height=header.height,
        width=header.width,
        channels=header.channels,
        patient=patient,
        format=header.format,
        bits=header.bits,
        alike=alike,
    )


def decode_all(
    read: Callable[[Sample], Picture], shown: Shown, pack: Path, tasks: Sequence[Task]
) -> list[Entry]:
    """Decodes images into their places of a pack; returns the entries completed.

    Raises:
        OSError: The pack cannot be written.
    """
    # Plain writes, no mapping: on a full disk a write fails with an error, a mapped page with SIGBUS.
    with pack.open("rb+", buffering=0) as file:
        return [_decode(read, shown, file.fileno(), task) for task in tasks]


def _decode(read: Callable[[Sample], Picture], shown: Shown, file: int, task: Task) -> Entry:
    try:
        picture = read(task.sample)
        entry = _described(task.entry, picture)
        pixels = show(picture, shown).tobytes()
    except BadImage as bad:
        return task.entry.with_error(bad)
    task.place.write(file, pixels)
    return entry


def decode_again(read: Callable[[Sample], Picture], shown: Shown, sample: Sample, entry: Entry) -> Pixels:
    """Decode an image whose cached pixels are damaged.

    Raises:
        DataError: Its file cannot be read any more, or is not what was cached.
    """
    what = f"{sample.file} ({sample.key}): its decoded image in the cache is damaged"
    try:
        picture = read(sample)
        pixels = show(picture, shown)
    except (BadImage, DataError, OSError) as error:
        raise DataError(
            f"{what}, and the file cannot be read any more ({error}); restore the file and start again",
            public="a decoded image in the cache is damaged, and its file cannot be read any more",
        ) from None
    if sha256(picture.content) != entry.sha:
        raise DataError(
            f"{what}, and the file has other pixels than it had; start again",
            public="a decoded image in the cache is damaged, and its file has other pixels than it had",
        )
    warn(f"{what}; it was decoded again")
    return pixels


def _described(entry: Entry, picture: Picture) -> Entry:
    return replace(
        entry,
        sha=sha256(picture.content),
        observed=(float(picture.values.min()), float(picture.values.max())),
        full=picture.full,
        own=picture.own,
        levels=picture.levels_name,
        corrected=picture.corrected,
    )


Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW = 256  # images that are done before processes would have started
_CHUNK = 32


class Workers:
    """Processes, started when there is enough to do; used as a context, which ends them.

    Reading image files is Python's work as much as Pillow's or pydicom's, and Python's threads take turns.
    """

    def __init__(self) -> None:
        self._pools: dict[bool, Executor] = {}

    def map(
        self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], *, in_memory: bool
    ) -> Iterator[Result]:
        """Yields the results of all items, in their order.

        Args:
            work: What is done with some of the items; a function of a module, perhaps with arguments bound.
            items: All of them.
            in_memory: The work needs what only this process has, so threads do it.

        Raises:
            DataError: A process was killed.
        """
        chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
        if len(items) <= _FEW or usable_cores() == 1:
            results: Iterator[list[Result]] = map(work, chunks)
        else:
            results = self._pool(in_memory).map(work, chunks)
        try:
            for done in results:
                yield from done
        except BrokenProcessPool:
            raise DataError(
                "a process that reads images was killed (out of memory?); what was read is kept: start again"
            ) from None

    def _pool(self, in_memory: bool) -> Executor:
        if in_memory not in self._pools:
            self._pools[in_memory] = ThreadPoolExecutor(usable_cores()) if in_memory else _processes()
        return self._pools[in_memory]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)


def _processes() -> Executor:
    # Forked from a server that has no threads: torch's would not survive a fork of this process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.decode"])
    return ProcessPoolExecutor(usable_cores(), context, _start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody: its workers would wait for work for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
