"""The network as it is served: pixels in, class probabilities out."""

import torch
from torch import Tensor, nn

from .spec import InputSpec, standardize, unit_range


class ServingModel(nn.Module):
    """Preprocessing, network and softmax in one module, fit for ``torch.export``.

    The wrapped model is shared, not copied, and is put into eval mode: a served model never trains.

    Args:
        model: The network, giving logits (N, K).
        spec: The input that the network expects.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        # Buffers, so that they follow the module to another device, also after an export.
        mean, std = spec.constants(torch.float32)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Gives the class probabilities of images.

        Args:
            pixels: uint8 (N, C, size, size).

        Returns:
            float32 (N, K); each row sums to 1.
        """
        logits: Tensor = self.model(standardize(unit_range(pixels), self.mean, self.std))
        return logits.float().softmax(dim=1)
