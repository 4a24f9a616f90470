"""Fewer threads for short work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
