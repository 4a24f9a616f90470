"""Read headers and decode images, in this process or in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..errors import DataError
from ..utils.cli import warn
from ..utils.io import sha256
from ..utils.runtime import usable_cores
from .file_info import FileInfo
from .image_array import ImageOffsets
from .listing import Sample
from .name_checks import hash_patient, hash_spelling
from .pixels import DecodedImage, Header, ImageError, ImageFormat, Pixels, render


class Task(NamedTuple):
    """One image to decode, and its offsets in the array."""

    sample: Sample
    info: FileInfo
    place: ImageOffsets


def read_headers(
    header: Callable[[Sample], Header], items: Sequence[tuple[Sample, FileInfo]]
) -> list[FileInfo]:
    """Return the file information, completed from the headers of the files."""
    return [_read_header(header, sample, info) for sample, info in items]


def _read_header(read: Callable[[Sample], Header], sample: Sample, info: FileInfo) -> FileInfo:
    try:
        header = read(sample)
    except ImageError as bad:
        return info.with_error(bad)
    # Hashed: the index only needs to know which images belong to one patient.
    patient, alike = (hash_patient(name), hash_spelling(name)) if (name := header.patient) else ("", "")
    shared = info.shared._replace(patient=patient, format=header.format, bits=header.bits, alike=alike)
    return replace(info, height=header.height, width=header.width, channels=header.channels, shared=shared)


def decode_all(
    read: Callable[[Sample], DecodedImage], image_format: ImageFormat, array_file: Path, tasks: Sequence[Task]
) -> list[FileInfo]:
    """Decode images into an array file; return the completed file information.

    Raises:
        OSError: The file cannot be written.
    """
    # Plain writes instead of mmap: on a full disk a write raises an error, a mapped page ends with SIGBUS.
    with array_file.open("rb+", buffering=0) as file:
        return [_decode(read, image_format, file.fileno(), task) for task in tasks]


def _decode(
    read: Callable[[Sample], DecodedImage], image_format: ImageFormat, file: int, task: Task
) -> FileInfo:
    try:
        image = read(task.sample)
        pixels = render(image, image_format).tobytes()
    except ImageError as bad:
        return task.info.with_error(bad)
    task.place.write(file, pixels)
    levels = image.levels.name if image.levels else ""
    return replace(
        task.info,
        sha=sha256(image.content),
        observed=(float(image.values.min()), float(image.values.max())),
        shared=task.info.shared._replace(
            full=image.full, own=image.own, levels=levels, corrected=image.corrected
        ),
    )


def decode_again(
    read: Callable[[Sample], DecodedImage], image_format: ImageFormat, sample: Sample, info: FileInfo
) -> Pixels:
    """Decode an image whose cached pixels are damaged.

    Raises:
        DataError: The file cannot be read any more, or its pixels have changed.
    """
    what = f"{sample.file} ({sample.key}): its decoded image in the cache is damaged"
    try:
        image = read(sample)
        pixels = render(image, image_format)
    except (ImageError, DataError, OSError) as error:
        raise DataError(
            f"{what}, and the file cannot be read any more ({error}); restore the file and start again",
            public="a decoded image in the cache is damaged, and its file cannot be read any more",
        ) from None
    if sha256(image.content) != info.sha:
        raise DataError(
            f"{what}, and the file has other pixels than it had; start again",
            public="a decoded image in the cache is damaged, and its file has other pixels than it had",
        )
    warn(f"{what}; it was decoded again")
    return pixels


Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW = 256  # fewer images are done before worker processes would have started
_CHUNK = 32


class Workers(ExitStack):
    """Worker processes, started when there is enough work; a context manager that ends them.

    Processes rather than threads, because reading image files holds the GIL.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[bool, Executor] = {}

    def map(
        self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], *, in_memory: bool
    ) -> Iterator[Result]:
        """Yield the results of all items in order.

        Args:
            work: Picklable function from a chunk of items to their results.
            items: All items.
            in_memory: Use threads, because the work needs the memory of this process.

        Raises:
            DataError: A worker process was killed.
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
            pool = ThreadPoolExecutor(usable_cores()) if in_memory else _processes()
            self._pools[in_memory] = pool
            self.callback(pool.shutdown, cancel_futures=True)
        return self._pools[in_memory]


def _processes() -> Executor:
    # Fork from a server without threads: torch's threads do not survive a fork of this process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.decode"])
    return ProcessPoolExecutor(usable_cores(), context, _start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent process ends: after ``kill -9`` a worker would wait for work forever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
