"""CUDA graphs of the forward and backward pass, for batches of one size."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, TrainingError
from ..models.forward import Network
from ..utils.cli import warn
from ..utils.config import TrainingConfig


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


def check_compile(network: Network, settings: TrainingConfig) -> None:
    """Refuse ``training.compile=on`` where graphs are known to be impossible.

    Raises:
        ConfigError: They are; the message says why.
    """
    if settings.compile == "on" and (reason := _obstacle(network, settings)) is not None:
        raise _refusal(reason)


def compiled(network: Network, settings: TrainingConfig) -> Network:
    """Return the network with the passes that ``training.compile`` asks for.

    The host launches several hundred kernels per step; as graphs they are two launches, and no bit of the
    result changes. ``torch.compile`` is slower for small images; at 224 px it pays after a million of them.

    Args:
        network: What trains; what is trainable must not change afterwards.
        settings: The training section.

    Raises:
        ConfigError: Graphs are asked for, and the model cannot be captured.
    """
    if settings.compile == "off":
        return network
    reason = _obstacle(network, settings)
    if reason is None:
        size = len(network.processes.share(settings.batch_size))
        graphed, reason = _capture(network, size)
        if graphed is not None:
            return replace(network, model=GraphedModel(network.model, graphed, size))
    if settings.compile == "on":
        raise _refusal(reason)
    if network.device.type == "cuda":
        warn(f"training without CUDA graphs: {reason}")
    return network


def _refusal(reason: str | None) -> ConfigError:
    return ConfigError(f"training.compile: CUDA graphs are not possible: {reason}; use auto or off")


def _obstacle(network: Network, settings: TrainingConfig) -> str | None:
    if network.device.type != "cuda":
        return f"the device is {network.device.type}"
    if network.processes.are_several:
        return "several processes train"  # never tried on several GPUs
    if settings.gradient_accumulation_steps > 1:  # a graph writes gradients to the same memory each time
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
        The captured module, or None and why there is none.

    Raises:
        TrainingError: Capturing failed half-way, after which torch's memory cannot be relied on.
    """
    buffers = [buffer.clone() for buffer in network.model.buffers()]
    spec, forward = network.spec, _Forward(network)
    images = torch.zeros(size, spec.channels, spec.size, spec.size, device=network.device)
    images = images.contiguous(memory_format=torch.channels_last)
    # Gradients are computed on the stream of the graphs and added on that of the loop, as is meant.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    try:
        if (reason := _try_passes(forward, images)) is not None:
            return None, reason
        return _captured(forward, images)
    finally:
        for buffer, before in zip(network.model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _try_passes(forward: _Forward, images: Tensor) -> str | None:
    """Run both passes twice; return why they cannot be captured, such as an operation that waits."""
    trained = [parameter for parameter in forward.parameters() if parameter.requires_grad]
    mode = torch.cuda.get_sync_debug_mode()
    try:
        for wanted in ("default", "error"):  # the first time libraries are set up, and may wait
            torch.cuda.set_sync_debug_mode(wanted)
            torch.autograd.grad(forward(images).sum(), trained)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return None


def _captured(forward: _Forward, images: Tensor) -> tuple[nn.Module | None, str | None]:
    device = images.device
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    try:
        graphed: Any = torch.cuda.make_graphed_callables(forward, (images,))
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise TrainingError(
            f"the CUDA graphs of the model could not be captured ({why}); set training.compile=off"
        ) from None
    torch.cuda.empty_cache()  # what the warm-up used on a stream of its own
    taken = torch.cuda.memory_reserved(device) - before
    # A graph keeps its memory; a smaller last batch, validation and the decoded images need theirs beside it.
    if taken > torch.cuda.mem_get_info(device)[0] / 2:
        return None, f"they would keep {taken / 1e9:.1f} GB, more than half of the memory that is then free"
    return graphed, None
