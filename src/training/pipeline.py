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
from ..models.input_spec import unit_range
from ..utils.config import Config
from ..utils.runtime import derive_seed, seed_everything, to_device
from ..utils.torchvision_import import submodule
from .step import Share, TrainStep

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
        share: The part of the whole batch that this rank processes.
    """

    images: Tensor
    targets: Tensor
    share: Share


class BatchPipeline:
    """Loads, augments, normalizes and mixes the training images.

    The images do not depend on the number of ranks or of micro-batches: each rank gets its part of the
    batch that a single process would make.
    """

    def __init__(
        self, config: Config, loader: BatchLoader, context: ModelContext, train_step: TrainStep
    ) -> None:
        """Set up the pipeline of one run.

        Args:
            config: The resolved settings.
            loader: Loads the training images.
            context: The model on its device.
            train_step: Defines how a batch is cut into micro-batches.
        """
        self._settings = config.training
        self._augment = config.data.augment
        self._labels = loader.dataset.splits["train"].labels
        self._loader = loader
        self._context = context
        self._min_micro_batch = train_step.min_micro_batch
        self._mixup = make_mixup(config.training.mixup_alpha, len(loader.dataset.classes))
        self._share = cache(lambda length: train_step.share(length, context.process_group))
        self._group_size = _batches_at_once(config, context)

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
        shares = [self._share(len(batch)) for batch in order]
        places = [self._places(share) for share in shares]
        chosen = [batch[own] for batch, own in zip(order, places, strict=True)]
        # Everything but the pixels is computed for the whole epoch and moved to the device in one copy.
        targets = self._on_device(torch.from_numpy(self._labels[np.concatenate(chosen)]))
        targets_of = targets.split([len(positions) for positions in chosen])
        changes = self._on_device(self._draw(epoch, shares, places))
        with closing(self._prepared(chosen, changes, first)) as prepared:
            for number, images in enumerate(prepared, first):
                seed = (self._settings.seed, epoch, number, _DROPOUT)
                seed_everything(*seed)
                batch = self._mixed(images, targets_of[number], shares[number])
                if (
                    self._context.process_group.is_distributed
                ):  # mixup is the same for all ranks, dropout differs
                    seed_everything(*seed, self._context.process_group.rank)
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
        return self._context.spec.normalize(augment(unit_range(pixels), self._augment, changes))

    def _places(self, share: Share) -> NDArray[np.int64]:
        """Return the positions of the images of a batch that this rank loads."""
        if not self._has_partners:
            return share.places
        # Each image is mixed with the one before it in the whole batch.
        return np.stack([(share.places - 1) % share.length, share.places], axis=1).ravel()

    @property
    def _has_partners(self) -> bool:
        return self._mixup is not None and self._context.process_group.is_distributed

    def _draw(self, epoch: int, shares: list[Share], places: list[NDArray[np.int64]]) -> Tensor:
        """Return the augmentation parameters ``(N, 8)`` of the images that this rank loads in an epoch."""
        seeds = [derive_seed(self._settings.seed, epoch, number, _AUGMENT) for number in range(len(shares))]
        lengths = [share.length for share in shares]
        drawn = draw_changes(self._augment, seeds, lengths)
        starts = np.cumsum([0, *lengths[:-1]])
        own = np.concatenate([start + part for start, part in zip(starts, places, strict=True)])
        return drawn[torch.from_numpy(own)]

    def _on_device(self, values: Tensor) -> Tensor:
        return to_device(values, self._context.device)

    def _mixed(self, images: Tensor, targets: Tensor, share: Share) -> Batch:
        if self._mixup is not None:
            images, targets = self._mixup(images, targets)
        if self._has_partners:
            images, targets = images[1::2], targets[1::2]
        images = images.contiguous(memory_format=torch.channels_last)
        if images.data_ptr() % _ALIGNMENT:  # a slice of a group; cuDNN may choose other kernels for it
            images = images.clone()
        return Batch(images, targets, share)


def _batches_at_once(config: Config, context: ModelContext) -> int:
    """Return how many batches are prepared together; one on a CPU, because of its small cache."""
    if context.device.type == "cpu":
        return 1
    spec = context.spec
    values = config.training.images_per_step * spec.channels * spec.size**2
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
