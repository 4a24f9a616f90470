"""Work in a background thread, and a limit to torch's threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch


class Background:
    """Run one task at a time in a background thread; as a context manager, wait for the last at the end.

    The error of a task is raised in the caller's thread by the next call. If not ``enabled``, tasks run at
    once in the caller's thread.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._pool = ThreadPoolExecutor(1, "background") if enabled else None
        self._current: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start a task as soon as the previous one is done."""
        self.wait()
        if self._pool is None:
            work()
        else:
            self._current = self._pool.submit(work)

    def check(self) -> None:
        """Raise the error of a finished task, without waiting."""
        if self._current is not None and self._current.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the running task, and raise its error."""
        if self._current is not None:
            # A signal may interrupt the wait; then the task is still running and must not be dropped.
            try:
                self._current.result()
            finally:
                if self._current.done():
                    self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        if error is None:  # else the first error is the one to raise
            self.wait()


VALUES_PER_THREAD = 2**19
"""Values per thread from which a second thread saves time; torch uses one thread per 32,768 values."""


@contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Limit torch to ``count`` threads (at least one) within the block, in the calling thread only.

    Threads wait for each other at the end of every operation. If another process or the background thread
    uses one of the cores, an operation of a millisecond waits for the next time slice of that core.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(max(1, min(count, usual)))
    try:
        yield
    finally:
        torch.set_num_threads(usual)
