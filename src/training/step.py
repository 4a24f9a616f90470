"""What training minimises: cross-entropy, with class weights, smoothed labels and mixed images as asked."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..models.forward import Network
from ..utils.config import TrainingConfig
from ..utils.processes import ALONE, Processes
from .ddp import unreduced


@dataclass(frozen=True)
class Loss:
    """Cross-entropy as a sum over images, so that passes of any size add up to one batch.

    The sum over all passes, divided by the ``total_weight`` of the whole batch, is what
    ``cross_entropy`` gives for the batch at once, but in one case: for shares with class weights, torch
    divides by the number of images. Here the weights of the shares are summed, so that shares of 0 and 1
    give the same loss as the indices that they stand for.

    Attributes:
        class_weights: float32 ``(K,)`` on the device, or None where all classes count alike.
        label_smoothing: Share of each label that is spread over all classes.
    """

    class_weights: Tensor | None = None
    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of logits ``(N, K)`` for ``targets``: indices ``(N,)`` or shares ``(N, K)``."""
        return F.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )

    def total_weight(self, targets: Tensor) -> Tensor | int:
        """What the summed loss of all ``targets`` is divided by; their number where classes count alike."""
        if self.class_weights is None:
            return len(targets)
        if targets.ndim == 1:
            return self.class_weights[targets].sum()
        return (targets @ self.class_weights).sum()


def make_loss(settings: TrainingConfig, labels: NDArray[np.int64], device: torch.device) -> Loss:
    """The configured loss.

    Args:
        settings: The training section.
        labels: Class indices of the training split, in which no class is missing.
        device: Where the logits will be.
    """
    if settings.class_weights == "none":
        return Loss(None, settings.label_smoothing)
    from sklearn.utils.class_weight import compute_class_weight

    weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    return Loss(torch.tensor(weights, dtype=torch.float32, device=device), settings.label_smoothing)


@dataclass(frozen=True)
class Optimization:
    """What turns a batch into new weights.

    Attributes:
        optimizer: Holds all parameters, the head's first.
        schedule: Of the learning rate, step by step.
        scaler: Keeps float16 gradients from vanishing; passes others through.
        loss: What is minimised.
        pass_size: Images that go through the network at once, over all processes.
        smallest: Images that a pass needs, over all processes.
        clip_grad_norm: Longest gradient, None for any.
        average: The moving average of the weights, None where they serve themselves.
    """

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    loss: Loss
    pass_size: int
    smallest: int = 2
    clip_grad_norm: float | None = None
    average: AveragedModel | None = None

    def rate_before(self, steps: int) -> float:
        """The head's learning rate ``steps`` steps ago."""
        peak = self.optimizer.param_groups[0]["initial_lr"]
        return float(peak * self.schedule.lr_lambdas[0](self.schedule.last_epoch - steps))

    def share(self, length: int, processes: Processes) -> "Share":
        """What one of several processes takes of a batch: of every pass its part."""
        cuts = pass_cuts(length, self.pass_size, self.smallest)
        starts, ends = [0, *cuts], [*cuts, length]
        parts = [
            start + np.array(processes.share(end - start), np.int64)
            for start, end in zip(starts, ends, strict=True)
        ]
        return Share(length, np.concatenate(parts), tuple(len(part) for part in parts))

    def step(self, network: Network, images: Tensor, targets: Tensor, share: "Share | None" = None) -> Tensor:
        """Moves the weights along the mean gradient over all images.

        Args:
            network: What trains.
            images: Standardised ``(N, C, H, W)``, on the device.
            targets: Class indices ``(N,)`` or shares ``(N, K)``, on the device.
            share: Which part of the batch these are; None for all of it.

        Returns:
            The summed loss of the whole batch, on the device.
        """
        share = share or self.share(len(images), ALONE)
        self.optimizer.zero_grad(set_to_none=True)
        weight = self.loss.total_weight(targets)
        weight = share.length if isinstance(weight, int) else network.processes.sum(weight)
        passes = list(zip(images.split(share.sizes), targets.split(share.sizes), strict=True))
        with unreduced(network.model):
            losses = [self._backward(network, *part, weight) for part in passes[:-1]]
        losses.append(self._backward(network, *passes[-1], weight))
        self._update(network.model)
        return network.processes.sum(reduce(torch.add, losses))

    def _backward(
        self, network: Network, images: Tensor, targets: Tensor, total_weight: Tensor | int
    ) -> Tensor:
        """Adds the gradient of one pass; returns its summed loss."""
        with torch.autocast(images.device.type, network.autocast, network.autocast is not None):
            loss = self.loss(network.model(images).float(), targets)
        mean = loss / total_weight
        if network.processes.are_several:  # replicas take the mean of their gradients, and the sum is meant
            mean = mean * network.processes.count
        self.scaler.scale(mean).backward()
        return loss.detach()

    def _update(self, model: nn.Module) -> None:
        if self.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(model)


@dataclass(frozen=True)
class Share:
    """What a process takes of a batch.

    Attributes:
        length: Images of the whole batch.
        places: Which of them it takes, int64 ``(N,)``.
        sizes: How many of those go through the network at once, pass by pass; 0 is possible.
    """

    length: int
    places: NDArray[np.int64]
    sizes: tuple[int, ...]


def pass_cuts(count: int, pass_size: int, smallest: int = 2) -> list[int]:
    """Where a batch is cut into passes; fewer than ``smallest`` at its end stay with the pass before them.

    Batch normalisation cannot be computed from one value per channel.
    """
    return list(range(pass_size, count - smallest + 1, pass_size))
