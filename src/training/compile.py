"""CUDA graphs of the forward and backward pass (``training.compile``)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, TrainingError
from ..models.forward import ModelContext
from ..utils.cli import warn
from ..utils.config import TrainingConfig


class GraphedModel(nn.Module):
    """Run batches of the usual size as CUDA graphs, others (a smaller last batch) without."""

    def __init__(self, model: nn.Module, graphed: nn.Module, size: int) -> None:
        """Wrap a model, whose parameters and buffers are those of the wrapper, in the same order.

        Args:
            model: The model.
            graphed: The same model, captured for batches of ``size`` images.
            size: Number of images.
        """
        super().__init__()
        self.model = model
        self._graphed = (graphed,)  # in a tuple, so that its parameters are not registered twice
        self._size = size

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, K)`` of images ``(N, C, H, W)``."""
        logits: Tensor = (self._graphed[0] if len(images) == self._size else self.model)(images)
        return logits


def check_compile(context: ModelContext, settings: TrainingConfig) -> None:
    """Refuse ``training.compile=on`` if CUDA graphs are known to be impossible.

    Raises:
        ConfigError: They are impossible; the message has the reason.
    """
    if settings.compile == "on" and (reason := _obstacle(context, settings)) is not None:
        raise _refusal(reason)


def compiled(context: ModelContext, settings: TrainingConfig) -> ModelContext:
    """Return the context with CUDA graphs if ``training.compile`` allows them and they are possible.

    CUDA graphs replace several hundred kernel launches per step by two, and change no bit of the result.
    ``torch.compile`` is slower for small images; at 224 px it pays off after a million images.

    Args:
        context: The model to train; the set of trainable parameters must not change afterwards.
        settings: The training section.

    Raises:
        ConfigError: ``training.compile`` is ``on`` and the model cannot be captured.
    """
    if settings.compile == "off":
        return context
    reason = _obstacle(context, settings)
    if reason is None:
        size = len(context.process_group.shard(settings.batch_size))
        graphed, reason = _capture(context, size)
        if graphed is not None:
            return replace(context, model=GraphedModel(context.model, graphed, size))
    if settings.compile == "on":
        raise _refusal(reason)
    if context.device.type == "cuda":
        warn(f"training without CUDA graphs: {reason}")
    return context


def _refusal(reason: str | None) -> ConfigError:
    return ConfigError(f"training.compile: CUDA graphs are not possible: {reason}; use auto or off")


def _obstacle(context: ModelContext, settings: TrainingConfig) -> str | None:
    if context.device.type != "cuda":
        return f"the device is {context.device.type}"
    if context.process_group.is_distributed:
        return "several processes train"  # not tested on several GPUs
    if settings.gradient_accumulation_steps > 1:  # a graph always writes gradients to the same memory
        return "training.gradient_accumulation_steps is more than 1"
    return None


class _Forward(nn.Module):
    """The forward pass in mixed precision, without the weight cache, which CUDA graphs cannot use."""

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.model = context.model
        self._autocast = context.autocast

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cuda", self._autocast, self._autocast is not None, cache_enabled=False):
            logits: Tensor = self.model(images)
            return logits.float()


def _capture(context: ModelContext, size: int) -> tuple[nn.Module | None, str | None]:
    """Capture both passes; weights and buffers stay as they are.

    Returns:
        The captured module, or None and the reason.

    Raises:
        TrainingError: Capturing failed half-way, which leaves torch's memory in an undefined state.
    """
    buffers = [buffer.clone() for buffer in context.model.buffers()]
    spec, forward = context.spec, _Forward(context)
    images = torch.zeros(size, spec.channels, spec.size, spec.size, device=context.device)
    images = images.contiguous(memory_format=torch.channels_last)
    # Gradients are computed on the stream of the graphs and accumulated on that of the loop, as intended.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    try:
        if (reason := _try_passes(forward, images)) is not None:
            return None, reason
        return _captured(forward, images)
    finally:
        for buffer, before in zip(context.model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _try_passes(forward: _Forward, images: Tensor) -> str | None:
    """Run both passes twice; return why they cannot be captured, such as a synchronizing operation."""
    trained = [parameter for parameter in forward.parameters() if parameter.requires_grad]
    mode = torch.cuda.get_sync_debug_mode()
    try:
        for wanted in ("default", "error"):  # the first pass initializes libraries, which may synchronize
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
    torch.cuda.empty_cache()  # frees the memory that the warm-up used on its own stream
    taken = torch.cuda.memory_reserved(device) - before
    # Graphs keep their memory; a smaller last batch, validation and the decoded images need their own.
    if taken > torch.cuda.mem_get_info(device)[0] / 2:
        return None, f"they would occupy {taken / 1e9:.1f} GB, more than half of the free memory"
    return graphed, None
