"""Work in a background thread, and a limit to torch's threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch


class Background:
    """Does what it is given in a thread of its own; used as a context, whose end waits for the last.

    What goes wrong there is raised in the caller's thread, by whatever it calls next. Without
    ``enabled`` each piece of work is done at once, in the caller's thread.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._pool = ThreadPoolExecutor(1, "background") if enabled else None
        self._current: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins a piece of work once the one before is done."""
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
            # Forgotten only when it is done: a signal may end the waiting before.
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
        if error is None:  # what went wrong first is what counts
            self.wait()


VALUES_PER_THREAD = 2**19
"""What makes a second thread worth its while; torch itself starts one for every 32,768 values."""


@contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Limit torch to ``count`` threads (at least one) within the block, in the calling thread only.

    Threads wait for each other at the end of every operation. Where something else uses a core (the
    background thread that writes checkpoints, another process), work of a millisecond waits for that
    core's next time slice, and the waiting itself takes processor time.

    Args:
        count: The limit; more than torch uses anyway changes nothing.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(max(1, min(count, usual)))
    try:
        yield
    finally:
        torch.set_num_threads(usual)
