"""The loss and one optimizer step, split into micro-batches."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..models.forward import ModelContext
from ..utils.config import TrainingConfig
from ..utils.distributed import SINGLE_PROCESS, ProcessGroup
from .ddp import no_sync


@dataclass(frozen=True)
class Loss:
    """Cross-entropy summed over images, so that micro-batches of any size add up to one batch.

    The sum over all micro-batches, divided by the ``total_weight`` of the whole batch, equals
    ``cross_entropy`` of the batch, with one exception: for soft labels with class weights, torch divides by
    the number of images. Here the weights of the soft labels are summed, so that one-hot labels give the
    same loss as class indices.

    Attributes:
        class_weights: float32 ``(K,)`` on the device, or None if all classes have the same weight.
        label_smoothing: Fraction of each label that is spread over all classes.
    """

    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss of logits ``(N, K)`` for indices ``(N,)`` or soft labels ``(N, K)``."""
        return F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )

    def total_weight(self, targets: Tensor) -> Tensor | int:
        """Return the divisor of the summed loss; the number of targets if there are no class weights."""
        if self.class_weights is None:
            return len(targets)
        if targets.ndim == 1:
            return self.class_weights[targets].sum()
        return (targets @ self.class_weights).sum()


def make_loss(settings: TrainingConfig, labels: NDArray[np.int64], device: torch.device) -> Loss:
    """Return the configured loss.

    Args:
        settings: The training section.
        labels: Class indices of the training split, which has images of every class.
        device: Device of the logits.
    """
    if settings.class_weights == "none":
        return Loss(None, settings.label_smoothing)
    from sklearn.utils.class_weight import compute_class_weight

    weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    return Loss(torch.tensor(weights, dtype=torch.float32, device=device), settings.label_smoothing)


@dataclass(frozen=True)
class BatchShard:
    """The part of a batch that one rank processes.

    Attributes:
        batch_length: Number of images in the whole batch.
        positions: Positions of the rank's images in the batch, int64 ``(N,)``.
        micro_batch_sizes: Number of the rank's images in each micro-batch; 0 is possible.
    """

    batch_length: int
    positions: NDArray[np.int64]
    micro_batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class TrainStep:
    """Everything that turns a batch into an update of the weights.

    Attributes:
        optimizer: Optimizer of all parameters; the first group has the learning rate of the head.
        schedule: Learning-rate schedule, advanced after every step.
        scaler: Gradient scaler; active for float16 only.
        loss: The loss to minimize.
        micro_batch_size: Images per forward pass, over all ranks.
        min_micro_batch: Smallest micro-batch that batch norm can handle, over all ranks.
        clip_grad_norm: Maximum norm of the gradient, None to not clip.
        ema: The moving average of the weights, None without one.
    """

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    loss: Loss
    micro_batch_size: int
    min_micro_batch: int = 2
    clip_grad_norm: float | None = None
    ema: AveragedModel | None = None

    def learning_rate_at(self, steps_ago: int) -> float:
        """Return the learning rate of the head ``steps_ago`` steps before the next one."""
        peak = self.optimizer.param_groups[0]["initial_lr"]
        return float(peak * self.schedule.lr_lambdas[0](self.schedule.last_epoch - steps_ago))

    def shard(self, length: int, group: ProcessGroup) -> BatchShard:
        """Return the part of a batch that this rank processes: a part of every micro-batch."""
        bounds = micro_batch_bounds(length, self.micro_batch_size, self.min_micro_batch)
        starts, ends = [0, *bounds], [*bounds, length]
        parts = [
            start + np.array(group.shard(end - start), np.int64)
            for start, end in zip(starts, ends, strict=True)
        ]
        return BatchShard(length, np.concatenate(parts), tuple(len(part) for part in parts))

    def step(
        self, context: ModelContext, images: Tensor, targets: Tensor, shard: BatchShard | None = None
    ) -> Tensor:
        """Update the weights along the mean gradient over all images.

        Args:
            context: The model to train.
            images: Normalized ``(N, C, H, W)``, on the device.
            targets: Class indices ``(N,)`` or soft labels ``(N, K)``, on the device.
            shard: The part of the batch that these images are; None for all of it.

        Returns:
            The summed loss of the whole batch, on the device.
        """
        shard = shard or self.shard(len(images), SINGLE_PROCESS)
        self.optimizer.zero_grad(set_to_none=True)
        weight = self.loss.total_weight(targets)
        weight = shard.batch_length if isinstance(weight, int) else context.process_group.all_reduce(weight)
        sizes = shard.micro_batch_sizes
        micro_batches = list(zip(images.split(sizes), targets.split(sizes), strict=True))
        with no_sync(context.model):
            losses = [self._backward(context, *part, weight) for part in micro_batches[:-1]]
        losses.append(self._backward(context, *micro_batches[-1], weight))
        self._update(context.model)
        return context.process_group.all_reduce(reduce(torch.add, losses))

    def _backward(
        self, context: ModelContext, images: Tensor, targets: Tensor, total_weight: Tensor | int
    ) -> Tensor:
        """Add the gradient of one micro-batch; return its summed loss."""
        with torch.autocast(images.device.type, context.autocast, context.autocast is not None):
            loss = self.loss(context.model(images).float(), targets)
        mean = loss / total_weight
        if context.process_group.is_distributed:
            mean = mean * context.process_group.world_size  # DDP averages over the ranks; a sum is needed
        self.scaler.scale(mean).backward()
        return loss.detach()

    def _update(self, model: nn.Module) -> None:
        if self.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.ema is not None:
            self.ema.update_parameters(model)


def micro_batch_bounds(count: int, size: int, minimum: int = 2) -> list[int]:
    """Return the positions at which a batch is cut into micro-batches of ``size`` images.

    A last micro-batch of fewer than ``minimum`` images is merged into the one before it, because batch norm
    cannot be computed from one value per channel.
    """
    return list(range(size, count - minimum + 1, size))
