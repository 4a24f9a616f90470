"""What ``auto`` stands for: weights, learning rates and epochs, by the network and what it starts from."""

import re
from dataclasses import dataclass
from typing import Any

from ..demo.demo import DEMO_NAME
from ..utils.config import Config

_DEMO_EPOCHS = 10  # a first run ends within two minutes on two cores
_FINE_TUNING_EPOCHS = 30
_SGD = 10.0  # the rates below are those of Adam


@dataclass(frozen=True)
class _Recipe:
    """Defaults of a family of networks, for batches of 32; README.md has the source of each value.

    Attributes:
        backbone: Learning rate of pretrained weights.
        scratch: Learning rate of random weights.
        epochs: Epochs from random weights.
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
    """Return the settings with every ``auto`` that depends on the network and its weights replaced."""
    is_demo = config.data.root_dir == DEMO_NAME
    weights = config.model.weights
    if weights == "auto":
        # The demo's phantoms have nothing of a photograph, and a first run should need no network.
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
