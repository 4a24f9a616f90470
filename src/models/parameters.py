"""Which parameters train, and how fast: the head, and everything before it (the backbone)."""

from typing import Any

from torch import nn

from .surgery import head_path


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    backbone_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Groups all parameters for an optimizer by learning rate and decay; vectors do not decay.

    Vectors are biases, the weights of norms, and what is a vector but for axes of length one
    (ConvNeXt's layer scale, class tokens). Frozen parameters are held too: an optimizer passes over what
    has no gradient, and finds them when they thaw.

    Args:
        model: The model.
        learning_rate: The rate of the head, and of all where there is no other.
        weight_decay: The decay of all but vectors.
        backbone_learning_rate: The rate of everything but the head; None for ``learning_rate``.

    Returns:
        One dict with ``params``, ``lr`` and ``weight_decay`` for each group; the first has the head's rate.
    """
    rest = learning_rate if backbone_learning_rate is None else backbone_learning_rate
    head = set(model.get_submodule(head_path(model)).parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in sorted(model.parameters(), key=lambda p: p not in head):
        rate = learning_rate if parameter in head else rest
        decay = weight_decay if parameter.squeeze().ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def train_mode(model: nn.Module, *, freeze_backbone: bool) -> None:
    """Makes the whole model train, or its head alone.

    A frozen layer is one at rest: its weights get no gradient, its batch norm keeps the statistics it
    has and its dropout drops nothing.

    Args:
        model: The model.
        freeze_backbone: Whether everything but the head is frozen.
    """
    model.train(not freeze_backbone).requires_grad_(not freeze_backbone)
    model.get_submodule(head_path(model)).train().requires_grad_()
