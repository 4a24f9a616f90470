"""Work beside the caller: one thing at a time, in order, nothing lost."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


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
        """Raises what went wrong, without waiting."""
        if self._current is not None and self._current.done():
            self.wait()

    def wait(self) -> None:
        """Waits for what is under way, and raises what went wrong."""
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
