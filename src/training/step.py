"""One optimizer step."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from src.training.evaluation import Network
from src.training.loss import Loss


@dataclass(frozen=True)
class Optimization:
    """What turns a batch into new weights.

    Attributes:
        optimizer: Holds all parameters, the head's first.
        schedule: Of the learning rate, step by step.
        scaler: Keeps float16 gradients from vanishing; passes others through.
        loss: What is minimised.
        pass_size: Images that go through the network at once.
        clip_grad_norm: Longest gradient, None for any.
        average: The moving average of the weights, None where they serve themselves.
    """

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    loss: Loss
    pass_size: int
    clip_grad_norm: float | None = None
    average: AveragedModel | None = None

    def rate_before(self, steps: int) -> float:
        """The head's learning rate ``steps`` steps ago."""
        peak = self.optimizer.param_groups[0]["initial_lr"]
        return float(peak * self.schedule.lr_lambdas[0](self.schedule.last_epoch - steps))

    def step(self, network: Network, images: Tensor, targets: Tensor) -> Tensor:
        """Moves the weights along the mean gradient over all images.

        Args:
            network: What trains.
            images: Standardised ``(N, C, H, W)``, on the device.
            targets: Class indices ``(N,)`` or shares ``(N, K)``, on the device.

        Returns:
            The summed loss, on the device.
        """
        self.optimizer.zero_grad(set_to_none=True)
        cuts = pass_cuts(len(images), self.pass_size)
        weight = self.loss.total_weight(targets)
        passes = zip(images.tensor_split(cuts), targets.tensor_split(cuts), strict=True)
        total = reduce(torch.add, (self._backward(network, *part, weight) for part in passes))
        self._update(network.model)
        return total

    def _backward(
        self, network: Network, images: Tensor, targets: Tensor, total_weight: Tensor | int
    ) -> Tensor:
        """Adds the gradient of one pass; returns its summed loss."""
        with torch.autocast(images.device.type, network.autocast, network.autocast is not None):
            loss = self.loss(network.model(images).float(), targets)
        self.scaler.scale(loss / total_weight).backward()
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


def pass_cuts(count: int, pass_size: int) -> list[int]:
    """Where a batch is cut into passes; an image left alone at its end stays with the pass before it.

    Batch normalisation cannot be computed from one value per channel.
    """
    return list(range(pass_size, count - 1, pass_size))
