"""The frame of every function of the Python interface."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..tracking.run import without_active_run
from ..tracking.sqlite_locks import waiting_ends
from ..utils.process_state import python_call


@contextmanager
def api_call(*, verbose: bool) -> Iterator[None]:
    """Execute a function of the interface in the block; the process is afterwards as it was before."""
    with python_call(verbose=verbose), without_active_run(), waiting_ends():
        yield
