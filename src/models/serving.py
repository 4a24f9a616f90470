"""A model with its preprocessing, as it is logged and exported."""

import torch
from torch import Tensor, nn

from .input_spec import InputSpec, standardize, unit_range


class ServingModel(nn.Module):
    """Preprocessing, model and softmax in one module that ``torch.export`` accepts.

    The wrapped model, which returns logits (N, K), is shared, not copied, and put into eval mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        # Buffers, so that they move with the module to another device, also after an export.
        mean, std = spec.constants(torch.float32)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the class probabilities, float32 (N, K), of uint8 pixels (N, C, size, size)."""
        logits: Tensor = self.model(standardize(unit_range(pixels), self.mean, self.std))
        return logits.float().softmax(dim=1)
