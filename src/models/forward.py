"""The one forward pass that validation, prediction and feature extraction share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..utils.runtime import to_device
from ..utils.threads import VALUES_PER_THREAD, at_most_threads
from .spec import InputSpec, unit_range


def predict_logits(
    model: nn.Module,
    spec: InputSpec,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Runs the network over all batches in eval mode, without gradients.

    The training flag of every submodule is what it was before when this returns.

    Args:
        model: The network, already on ``device``.
        spec: The input that the network expects.
        batches: uint8 pixels (N, C, H, W), on any device.
        device: Where the network is.
        autocast: Lower precision for the network (``torch.bfloat16``), or None for full precision.

    Returns:
        float32 logits (N_total, K) on the CPU, in the order of the batches.

    Raises:
        ValueError: If there is no batch at all.
    """
    # Logits stay on the device until the end: a copy per batch would wait for the device each time.
    logits: list[Tensor] = []
    with evaluating(model):
        for batch in batches:
            with at_most_threads(batch.numel() // VALUES_PER_THREAD):
                pixels = spec.normalize(unit_range(to_device(batch, device)))
            with torch.inference_mode(), torch.autocast(device.type, autocast, autocast is not None):
                logits.append(model(pixels).float())
    if not logits:
        raise ValueError("predict_logits needs at least one batch of images")
    return torch.cat(logits).cpu()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode and restores each submodule's own flag (frozen ones stay frozen)."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
