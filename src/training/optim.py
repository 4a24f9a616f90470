"""Optimizer, learning-rate schedule and the moving average of the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ..utils.config import TrainingConfig


def make_optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """The configured optimizer over ``groups`` (as `src.models.parameters.parameter_groups` makes)."""
    # Fused: one pass over all that a step reads and writes, where the other implementations make several.
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=float(config.learning_rate),
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            # It fails (torch 2.13) once some parameters have momentum and others have not yet.
            fused=config.freeze_backbone_epochs == 0,
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=float(config.learning_rate), fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int) -> LambdaLR:
    """A schedule that is stepped after every optimizer step."""
    return LambdaLR(optimizer, lambda step: rate_factor(step / steps_per_epoch, config, 1 / steps_per_epoch))


def rate_factor(epochs_done: float, config: TrainingConfig, step: float = 0.0) -> float:
    """The factor on the peak learning rate at a point of the run.

    Linear warm-up over ``warmup_epochs``, then cosine to zero at the last epoch (Loshchilov and Hutter
    2017, doi 10.48550/arXiv.1608.03983, without restarts), a cut at each milestone, or nothing.

    Args:
        epochs_done: Epochs that have passed, with fractions.
        config: The training section.
        step: One step in epochs; the first step of the warm-up has a rate above zero.
    """
    epochs = int(config.epochs)
    warmup = min(config.warmup_epochs, epochs - 1)
    if epochs_done < warmup:
        return min(1.0, (epochs_done + step) / warmup)
    if config.schedule == "cosine":
        progress = (epochs_done - warmup) / (epochs - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "multistep":
        # A hair more than nothing: 50 epochs of steps may sum to 49.999...
        return float(config.gamma ** sum(epochs_done + 1e-9 >= milestone for milestone in config.milestones))
    return 1.0


class WeightAverage(AveragedModel):
    """An exponential moving average of a model's weights and batch-norm statistics.

    ``AveragedModel`` reads its step count on the device that trains, so each step waits for the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start at the model's weights.

        Args:
            model: The model that trains.
            decay: The share of the average that each step leaves in place.
        """
        super().__init__(model, use_buffers=True)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average toward the model's weights; the first step copies them."""
        old, new = _tensors(self.module), _tensors(model)
        floats = [i for i, tensor in enumerate(old) if tensor.is_floating_point()]
        share = 1 - self._decay if int(self.n_averaged) else 1.0
        torch._foreach_lerp_([old[i] for i in floats], [new[i] for i in floats], share)
        # Whole numbers are indices (Swin's positions) and counts: averaged, they would be rounded down.
        for i in set(range(len(old))) - set(floats):
            old[i].copy_(new[i])
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
