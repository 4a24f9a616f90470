"""What training minimises: cross-entropy, with class weights, smoothed labels and mixed images as asked."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..utils.config import TrainingConfig
from ..utils.torchvision_import import submodule

Mixup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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


def make_mixup(alpha: float, num_classes: int) -> Mixup | None:
    """What mixes images ``(N, C, H, W)`` and labels ``(N,)`` of a batch; None where ``alpha`` is 0.

    Each image is mixed with its neighbour in the shuffled batch, and the labels become shares
    ``(N, K)``. The batch's one share is drawn from torch's generator of the CPU, wherever the images are.

    Source: Zhang et al. 2018, doi 10.48550/arXiv.1710.09412.
    """
    if alpha == 0:
        return None
    mixup: Mixup = submodule("transforms.v2").MixUp(alpha=alpha, num_classes=num_classes)
    return mixup
