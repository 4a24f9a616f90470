"""Optimizer, learning-rate schedule, moving average of the weights, and the defaults of all of them."""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ..demo.demo import DEMO_NAME
from ..models.stem import head_path
from ..utils.config import Config, TrainingConfig


def make_optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer for the parameter groups of `parameter_groups`."""
    # Fused: one pass over parameters and state, where the other implementations make several.
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=float(config.learning_rate),
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            # Fails (torch 2.13) if some parameters have momentum and others do not yet.
            fused=config.freeze_backbone_epochs == 0,
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=float(config.learning_rate), fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps_per_epoch: int) -> LambdaLR:
    """Return the configured schedule, which is advanced after every optimizer step."""
    return LambdaLR(optimizer, lambda step: rate_factor(step / steps_per_epoch, config, 1 / steps_per_epoch))


def rate_factor(epochs_done: float, config: TrainingConfig, step: float = 0.0) -> float:
    """Return the factor on the peak learning rate at a point of the run.

    Linear warm-up over ``warmup_epochs``, then cosine to zero at the last epoch (Loshchilov and Hutter
    2017, doi 10.48550/arXiv.1608.03983, without restarts), a reduction at each milestone, or constant.

    Args:
        epochs_done: Epochs since the start, with fractions.
        config: The training section.
        step: Length of one step in epochs, so that the first step of the warm-up has a rate above zero.
    """
    epochs = int(config.epochs)
    warmup = min(config.warmup_epochs, epochs - 1)
    if epochs_done < warmup:
        return min(1.0, (epochs_done + step) / warmup)
    if config.schedule == "cosine":
        progress = (epochs_done - warmup) / (epochs - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "multistep":
        reached = [m if isinstance(m, int) else m * epochs for m in config.milestones]
        # The steps of 50 epochs may sum to 49.999...
        return float(config.gamma ** sum(epochs_done + 1e-9 >= milestone for milestone in reached))
    return 1.0


class ModelEma(AveragedModel):
    """An exponential moving average of a model's weights and batch-norm statistics.

    ``AveragedModel`` reads its step count from the GPU, so that every step would wait for the GPU.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start with the weights of the model; each step keeps the fraction ``decay`` of the average."""
        super().__init__(model, use_buffers=True)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average toward the model's weights; the first step copies them."""
        old, new = _tensors(self.module), _tensors(model)
        floats = [i for i, tensor in enumerate(old) if tensor.is_floating_point()]
        weight = 1 - self._decay if int(self.n_averaged) else 1.0
        torch._foreach_lerp_([old[i] for i in floats], [new[i] for i in floats], weight)
        # Integers are indices (Swin's positions) and counts, which must not be averaged.
        for i in set(range(len(old))) - set(floats):
            old[i].copy_(new[i])
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


_DEMO_EPOCHS = 5  # a first run ends within two minutes on two cores without AVX512
_FINE_TUNING_EPOCHS = 30
_SGD = 10.0  # factor on the learning rates below, which are for Adam


@dataclass(frozen=True)
class _Recipe:
    """Defaults of a model family for batches of 32; README.md names the source of each value.

    Attributes:
        backbone: Learning rate of pretrained weights.
        scratch: Learning rate of random weights.
        epochs: Number of epochs from random weights.
    """

    backbone: float
    scratch: float
    epochs: int


_CONVOLUTIONAL = _Recipe(backbone=1e-4, scratch=1e-3, epochs=100)
_RECIPES = {
    r"(vit|swin|maxvit)_": _Recipe(backbone=2e-5, scratch=1e-4, epochs=300),
    r"convnext_": _Recipe(backbone=5e-5, scratch=1e-4, epochs=300),
    # No batch norm.
    r"alexnet|squeezenet|vgg\d+$": _Recipe(backbone=1e-4, scratch=1e-4, epochs=100),
}
_HEAD = 1e-3


def resolve_defaults(config: Config) -> Config:
    """Return the settings with every ``auto`` resolved that depends on the model and its weights."""
    is_demo = config.data.root_dir == DEMO_NAME
    weights = config.model.weights
    if weights == "auto":
        # The demo's phantoms do not resemble photographs, and a first run should work offline.
        weights = "none" if is_demo else "imagenet"
    recipe = next((r for name, r in _RECIPES.items() if re.match(name, config.model.name)), _CONVOLUTIONAL)
    training, changes = config.training, dict[str, Any]({"model.weights": weights})
    factor = _SGD if training.optimizer == "sgd" else 1.0
    is_pretrained = weights != "none"
    head = training.learning_rate
    if head == "auto":
        head = (_HEAD if is_pretrained else recipe.scratch) * factor
        changes["training.learning_rate"] = head
    if training.backbone_learning_rate == "auto":
        backbone = min(recipe.backbone * factor, float(head)) if is_pretrained else None
        changes["training.backbone_learning_rate"] = backbone
    if training.epochs == "auto":
        own = _FINE_TUNING_EPOCHS if is_pretrained else recipe.epochs
        changes["training.epochs"] = _DEMO_EPOCHS if is_demo else own
    return config.updated(changes)


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    backbone_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Group all parameters by learning rate and weight decay; vectors have no weight decay.

    Vectors are biases, the weights of norms, and tensors with one axis longer than 1 (ConvNeXt's layer
    scale, class tokens). Frozen parameters are included: an optimizer skips parameters without a gradient.

    Args:
        model: The model.
        learning_rate: Learning rate of the head, and of the backbone if it has no other.
        weight_decay: Weight decay of all parameters but vectors.
        backbone_learning_rate: Learning rate of everything but the head; None for ``learning_rate``.

    Returns:
        One dict with ``params``, ``lr`` and ``weight_decay`` per group; the first has the head's rate.
    """
    rest = learning_rate if backbone_learning_rate is None else backbone_learning_rate
    head = set(model.get_submodule(head_path(model)).parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in sorted(model.parameters(), key=lambda p: p not in head):
        rate = learning_rate if parameter in head else rest
        decay = weight_decay if parameter.squeeze().ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
