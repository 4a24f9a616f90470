"""Training batches: load, augment, normalize and mix."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.augment import augment, draw_changes
from ..data.batches import BatchLoader, training_batches
from ..models.forward import ModelContext
from ..models.input_spec import InputSpec, unit_range
from ..utils.config import Config
from ..utils.runtime import derive_seed, seed_everything, to_device
from ..utils.torchvision_import import submodule
from .step import BatchShard, TrainStep

_AUGMENT, _DROPOUT = 2, 3  # random streams; shuffling has its own
_ALIGNMENT = 64  # bytes; alignment of torch's CPU allocations, at least as large as libraries need
_BATCHES_AT_ONCE = 8  # largest number of batches that a GPU prepares together
_VALUES_AT_ONCE = 2**24  # largest number of float32 values of their images, 64 MiB

Mixup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Batch:
    """The input of one optimizer step.

    Attributes:
        images: Augmented and normalized ``(N, C, H, W)``, channels last, on the device.
        targets: Class indices ``(N,)`` or soft labels ``(N, K)``, on the device.
        shard: The part of the whole batch that this rank processes.
    """

    images: Tensor
    targets: Tensor
    shard: BatchShard


class BatchPipeline:
    """Load, augment, normalize and mix the training images.

    The images do not depend on the number of ranks or of micro-batches: each rank gets its part of the
    batch that a single process would make.
    """

    def __init__(
        self, config: Config, loader: BatchLoader, context: ModelContext, train_step: TrainStep
    ) -> None:
        """Set up the pipeline of one run; ``train_step`` defines how a batch is cut into micro-batches."""
        self._settings = config.training
        self._augment = config.data.augment
        self._labels = loader.dataset.splits["train"].labels
        self._loader = loader
        self._spec, self._device, self._group = context.spec, context.device, context.process_group
        self._min_micro_batch = train_step.min_micro_batch
        self._mixup = make_mixup(config.training.mixup_alpha, len(loader.dataset.classes))
        self._has_partners = self._mixup is not None and self._group.is_distributed
        self._shard = cache(lambda length: train_step.shard(length, context.process_group))
        self._group_size = _batches_at_once(config.training.images_per_step, context.spec, context.device)

    def order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the image positions of each batch of an epoch, over all ranks."""
        settings = self._settings
        return training_batches(
            len(self._labels),
            settings.images_per_step,
            seed=settings.seed,
            epoch=epoch,
            smallest=self._min_micro_batch,
        )

    def load(
        self, epoch: int, order: Sequence[NDArray[np.int64]], first: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, starting with batch ``first``; ``order`` is the order of the epoch.

        The global generators are seeded for each step before its batch is yielded, so that a run can be
        resumed at any step. Close the iterator when stopping early.
        """
        shards = [self._shard(len(batch)) for batch in order]
        loaded = [self._loaded_positions(shard) for shard in shards]
        chosen = [batch[own] for batch, own in zip(order, loaded, strict=True)]
        # Everything but the pixels is computed for the whole epoch and moved to the device in one copy.
        targets = to_device(torch.from_numpy(self._labels[np.concatenate(chosen)]), self._device)
        targets_of = targets.split([len(positions) for positions in chosen])
        changes = to_device(self._draw(epoch, shards, loaded), self._device)
        with closing(self._prepared(chosen, changes, first)) as prepared:
            for number, images in enumerate(prepared, first):
                seed = (self._settings.seed, epoch, number, _DROPOUT)
                seed_everything(*seed)
                batch = self._mixed(images, targets_of[number], shards[number])
                if self._group.is_distributed:  # mixup is the same for all ranks, dropout differs
                    seed_everything(*seed, self._group.rank)
                yield batch

    def _prepared(
        self, chosen: list[NDArray[np.int64]], changes: Tensor, first: int
    ) -> Generator[Tensor, None, None]:
        """Yield the augmented and normalized images of each batch, starting with batch ``first``.

        A GPU prepares several batches of small images at once, because launching the kernels of one batch
        takes longer than running them. The groups do not depend on ``first``.
        """
        size = self._group_size
        starts = range(first - first % size, len(chosen), size)
        sizes = [len(positions) for positions in chosen]
        changes_of = changes.split([sum(sizes[start : start + size]) for start in range(0, len(sizes), size)])
        with closing(self._loader.load("train", chosen[starts.start :])) as pixels:
            for start in starts:
                group = list(islice(pixels, size))
                images = self._prepare(group, changes_of[start // size])
                parts = deque(images.split(sizes[start : start + size]))
                del group, images  # frees memory for the forward pass
                for number in range(start, start + len(parts)):
                    part = parts.popleft()
                    if number >= first:
                        yield part

    def _prepare(self, group: list[Tensor], changes: Tensor) -> Tensor:
        pixels = group[0] if len(group) == 1 else torch.cat(group)
        return self._spec.normalize(augment(unit_range(pixels), self._augment, changes))

    def _loaded_positions(self, shard: BatchShard) -> NDArray[np.int64]:
        """Return the positions of the images of a batch that this rank loads."""
        if not self._has_partners:
            return shard.positions
        # Each image is mixed with the one before it in the whole batch.
        return np.stack([(shard.positions - 1) % shard.batch_length, shard.positions], axis=1).ravel()

    def _draw(self, epoch: int, shards: list[BatchShard], loaded: list[NDArray[np.int64]]) -> Tensor:
        """Return the augmentation parameters ``(N, 8)`` of the images that this rank loads in an epoch."""
        seeds = [derive_seed(self._settings.seed, epoch, number, _AUGMENT) for number in range(len(shards))]
        lengths = [shard.batch_length for shard in shards]
        drawn = draw_changes(self._augment, seeds, lengths)
        starts = np.cumsum([0, *lengths[:-1]])
        own = np.concatenate([start + part for start, part in zip(starts, loaded, strict=True)])
        return drawn[torch.from_numpy(own)]

    def _mixed(self, images: Tensor, targets: Tensor, shard: BatchShard) -> Batch:
        if self._mixup is not None:
            images, targets = self._mixup(images, targets)
        if self._has_partners:
            images, targets = images[1::2], targets[1::2]
        images = images.contiguous(memory_format=torch.channels_last)
        if images.data_ptr() % _ALIGNMENT:  # a slice of a group; cuDNN may choose other kernels for it
            images = images.clone()
        return Batch(images, targets, shard)


def _batches_at_once(images_per_batch: int, spec: InputSpec, device: torch.device) -> int:
    """Return how many batches are prepared together; one on a CPU, because of its small cache."""
    if device.type == "cpu":
        return 1
    values = images_per_batch * spec.channels * spec.size**2
    return max(1, min(_BATCHES_AT_ONCE, _VALUES_AT_ONCE // values))


def make_mixup(alpha: float, num_classes: int) -> Mixup | None:
    """Return the function that mixes images ``(N, C, H, W)`` and labels ``(N,)``; None if ``alpha`` is 0.

    Each image is mixed with its neighbor in the shuffled batch, and the labels become soft labels
    ``(N, K)``. The one ratio of the batch is drawn from torch's CPU generator, also for images on a GPU.

    Source: Zhang et al. 2018, doi 10.48550/arXiv.1710.09412.
    """
    if alpha == 0:
        return None
    mixup: Mixup = submodule("transforms.v2").MixUp(alpha=alpha, num_classes=num_classes)
    return mixup
