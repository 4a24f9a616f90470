"""Which images go into which batch."""

import numpy as np
from numpy.typing import NDArray

from ..utils.runtime import derive_seed

_SHUFFLE = 1  # keeps this stream apart from others that are derived from the same seed and epoch


def training_batches(
    count: int, batch_size: int, *, seed: int, epoch: int, smallest: int = 2
) -> list[NDArray[np.int64]]:
    """The batches of one epoch, shuffled by ``(seed, epoch)``.

    A trailing batch that is too small joins the one before it: batch normalisation cannot be computed
    from one value per channel, and no image should be left out.

    Args:
        count: Images in the split, two or more.
        batch_size: Images per batch.
        seed: Seed of the run.
        epoch: Epoch number from 1.
        smallest: Images that a batch needs.

    Returns:
        Positions in the split, one int64 array per batch.
    """
    order = np.random.default_rng(derive_seed(seed, epoch, _SHUFFLE)).permutation(count).astype(np.int64)
    batches = in_order(order, batch_size)
    if len(batches) > 1 and len(batches[-1]) < smallest:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def in_order(positions: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """``positions`` cut into batches, in order; the last may be smaller."""
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
