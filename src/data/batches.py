"""Cut splits into batches, and read the batches in the background."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..utils.runtime import derive_seed, to_device, usable_cores
from .dataset import Dataset
from .image_array import Images

_SHUFFLE = 1  # separates this random stream from others with the same seed and epoch


def training_batches(
    count: int, batch_size: int, *, seed: int, epoch: int, smallest: int = 2
) -> list[NDArray[np.int64]]:
    """Return the batches of one epoch, shuffled by ``(seed, epoch)``.

    A last batch that is too small is merged into the previous one: batch normalization cannot be computed
    from one value per channel, and no image should be skipped.

    Args:
        count: Images in the split, two or more.
        batch_size: Images per batch.
        seed: Seed of the run.
        epoch: Epoch number from 1.
        smallest: Minimum number of images in a batch.

    Returns:
        Positions in the split, one int64 array per batch.
    """
    order = np.random.default_rng(derive_seed(seed, epoch, _SHUFFLE)).permutation(count).astype(np.int64)
    batches = sequential_batches(order, batch_size)
    if len(batches) > 1 and len(batches[-1]) < smallest:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def sequential_batches(positions: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut positions into batches in order; the last one may be smaller."""
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]


BATCHES_AHEAD = 4
"""Number of batches that are read in advance; it bounds the memory."""

_GPU_READERS = 4
Item = TypeVar("Item")
Result = TypeVar("Result")
Batches = Sequence[NDArray[np.int64]]
"""Positions of the images of each batch."""


def load_batches(images: Images, batches: Batches, device: torch.device) -> Generator[Tensor, None, None]:
    """Yield uint8 batches ``(B, C, S, S)`` on the device, read in the background.

    An error of a reading thread is raised here, in the order of the batches. Close the iterator if it may end
    early, so that the threads end.
    """
    if device.type == "cuda":
        reader = _GpuReader(images, max(map(len, batches), default=0), device)
        with closing(read_ahead(reader.read, batches, threads=reader.threads)) as copies:
            yield from map(reader.receive, copies)
    else:
        with closing(read_ahead(images.read, batches)) as read:
            yield from (batch.to(device) for batch in read)


def read_ahead(
    read: Callable[[Item], Result], items: Sequence[Item], *, threads: int = 1
) -> Generator[Result, None, None]:
    """Yield ``read(item)`` for all items in order, `BATCHES_AHEAD` of them computed in advance by threads."""
    pool = ThreadPoolExecutor(threads, "read-ahead")
    try:
        waiting = (pool.submit(read, item) for item in items)
        ahead = deque(islice(waiting, BATCHES_AHEAD))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(islice(waiting, 1))
            yield result
    finally:  # also if the caller stops early: cancel pending reads
        pool.shutdown(cancel_futures=True)


class _GpuReader:
    """Read batches into reused pinned memory, and copy them to a GPU on a separate stream."""

    def __init__(self, images: Images, largest: int, device: torch.device) -> None:
        self.threads = min(_GPU_READERS, usable_cores())
        self._images = images
        self._stream = torch.cuda.Stream(device)
        self._free: SimpleQueue[tuple[Tensor, torch.cuda.Event]] = SimpleQueue()
        for _ in range(self.threads + 1):  # one more, because its copy may be in progress
            buffer = torch.empty(largest, *images.image_shape, dtype=torch.uint8, pin_memory=True)
            self._free.put((buffer, torch.cuda.Event()))

    def read(self, positions: NDArray[np.int64]) -> tuple[Tensor, torch.cuda.Event]:
        """Read a batch and start its copy; called by the reading threads.

        Returns:
            The batch on the GPU, and the event after which its bytes are there.
        """
        buffer, copied = self._free.get()
        try:
            copied.synchronize()  # wait until its previous batch was copied
            read = self._images.read(positions, buffer[: len(positions)])
            copied = torch.cuda.Event()
            with torch.cuda.stream(self._stream):
                batch = read.to(self._stream.device, non_blocking=True)
                copied.record(self._stream)
            return batch, copied
        finally:
            self._free.put((buffer, copied))

    def receive(self, read: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        """Make the current stream wait for a batch, without blocking the host."""
        batch, copied = read
        stream = torch.cuda.current_stream(batch.device)
        stream.wait_event(copied)
        batch.record_stream(stream)
        return batch


class BatchLoader:
    """Batches of the splits of a run; splits that are used in every epoch stay on the GPU if they fit."""

    def __init__(self, dataset: Dataset, device: torch.device, cache_share: float | None) -> None:
        """Decide which splits stay on the GPU; each is copied there at its first use.

        Args:
            dataset: The images.
            device: Where batches go.
            cache_share: Share of the GPU's free memory that images may take; None for none.
        """
        self.dataset = dataset
        self.resident = _choose(dataset, device, cache_share)
        self._device = device
        self._kept: dict[str, Tensor] = {}

    def load(self, split: str, batches: Batches) -> Generator[Tensor, None, None]:
        """Yield uint8 batches ``(B, C, S, S)`` on the device; see `load_batches`."""
        images = self.dataset.images(split)
        if split not in self.resident:
            return load_batches(images, batches, self._device)
        if split not in self._kept:
            self._kept[split] = _copy_all(images, self._device)
        return _select(self._kept[split], batches)


def _choose(dataset: Dataset, device: torch.device, cache_share: float | None) -> tuple[str, ...]:
    """Return the splits used in every epoch that fit in the given share of the GPU's free memory."""
    if device.type != "cuda" or cache_share is None:
        return ()
    left = cache_share * torch.cuda.mem_get_info(device)[0]
    chosen = []
    for name in ("train", "val"):
        if (size := dataset.images(name).nbytes) <= left:
            chosen.append(name)
            left -= size
    return tuple(chosen)


def _copy_all(images: Images, device: torch.device) -> Tensor:
    kept = torch.empty(len(images), *images.image_shape, dtype=torch.uint8, device=device)
    size = max(1, 2**24 // int(np.prod(images.image_shape)))  # 16 MiB at a time
    batches = sequential_batches(np.arange(len(images)), size)
    for positions, batch in zip(batches, load_batches(images, batches, device), strict=True):
        kept[positions[0] : positions[0] + len(positions)] = batch
    return kept


def _select(images: Tensor, batches: Batches) -> Generator[Tensor, None, None]:
    if batches:
        positions = to_device(torch.from_numpy(np.concatenate(batches)), images.device)
        for chosen in positions.split([len(batch) for batch in batches]):
            yield images.index_select(0, chosen)
