"""CUDA graphs of the forward and backward pass, for batches of one size."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from src.errors import ConfigError
from src.training.evaluation import Network
from src.utils.cli import warn


class GraphedModel(nn.Module):
    """Runs batches of the usual size as CUDA graphs, others (a smaller last batch) as they are."""

    def __init__(self, model: nn.Module, graphed: nn.Module, size: int) -> None:
        """Wrap a model.

        Args:
            model: The model; its parameters and buffers are those of the wrapper, in the same order.
            graphed: The same model, captured for batches of ``size`` images.
            size: Images of such a batch.
        """
        super().__init__()
        self.model = model
        self._graphed = (graphed,)  # in a tuple, so that its parameters are not registered twice
        self._size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of images ``(N, C, H, W)``."""
        logits: Tensor = (self._graphed[0] if len(images) == self._size else self.model)(images)
        return logits


def compiled(network: Network, setting: str, size: int, *, is_accumulated: bool) -> Network:
    """Return the network with the passes that ``training.compile`` asks for.

    The host launches several hundred kernels per step; as graphs they are two launches, and no bit of the
    result changes. ``torch.compile`` was slower or no faster than that, after a minute of compiling.

    Args:
        network: What trains; what is trainable must not change afterwards.
        setting: ``off``; ``on``; ``auto`` for graphs where they are possible.
        size: Images of a micro-batch.
        is_accumulated: Whether gradients of several micro-batches are added up: a graph writes them to the
            same memory each time.

    Raises:
        ConfigError: ``on``, and graphs are not possible.
    """
    if setting == "off":
        return network
    reason = _obstacle(network, is_accumulated=is_accumulated)
    if reason is None:
        graphed, reason = _capture(network, size)
        if graphed is not None:
            return replace(network, model=GraphedModel(network.model, graphed, size))
        warn(f"training without CUDA graphs: {reason}")
    if setting == "on":
        raise ConfigError(f"training.compile: CUDA graphs are not possible: {reason}; use auto or off")
    return network


def _obstacle(network: Network, *, is_accumulated: bool) -> str | None:
    if network.device.type != "cuda":
        return f"the device is {network.device.type}"
    if network.processes.are_several:
        return "several processes train"  # never tried on several GPUs
    if is_accumulated:
        return "training.gradient_accumulation_steps is more than 1"
    return None


class _Forward(nn.Module):
    """The forward pass in mixed precision, without the cache of weights that a graph cannot use."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model = network.model
        self._autocast = network.autocast

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cuda", self._autocast, self._autocast is not None, cache_enabled=False):
            logits: Tensor = self.model(images)
            return logits.float()


def _capture(network: Network, size: int) -> tuple[nn.Module | None, str | None]:
    """Capture both passes; weights and buffers stay as they are.

    Returns:
        The captured module, or None and why it could not be captured.
    """
    buffers = [buffer.clone() for buffer in network.model.buffers()]
    spec = network.spec
    images = torch.zeros(size, spec.channels, spec.size, spec.size, device=network.device)
    forward: Any = _Forward(network)
    # Gradients are computed on the stream of the graphs and added on that of the loop, as is meant.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    try:
        sample = (images.contiguous(memory_format=torch.channels_last),)
        graphed: Any = torch.cuda.make_graphed_callables(forward, sample)
    except RuntimeError as error:  # an operation that waits for the device, or too little memory
        return None, str(error).partition("\n")[0]
    finally:
        for buffer, before in zip(network.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return graphed, None
