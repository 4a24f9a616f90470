"""Work on many images at once, on all cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

from ..errors import DataError
from ..utils.runtime import usable_cores

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
