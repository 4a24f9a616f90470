"""Scores one split with the one forward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..utils.processes import ALONE, Processes
from ..utils.runtime import to_device
from ..utils.threads import VALUES_PER_THREAD, at_most_threads
from .input_spec import InputSpec, unit_range
from .stem import head_path


@dataclass(frozen=True)
class Network:
    """A model, what it expects, and how it computes.

    Attributes:
        model: Here; each of several processes has one of its own.
        spec: The input that it expects.
        device: Where it is.
        autocast: The mixed precision it trains in, None for float32.
        processes: Who computes along.
    """

    model: nn.Module
    spec: InputSpec
    device: torch.device
    autocast: torch.dtype | None
    processes: Processes = ALONE


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


_SHOWN = 20


def extract_features(
    model: nn.Module,
    spec: InputSpec,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    layer: str | None = None,
) -> Tensor:
    """Runs the network over all batches and keeps what a layer gives.

    What has places (a feature map, the tokens of a transformer) is averaged over them.

    Args:
        model: The network, already on ``device``.
        spec: The input that the network expects.
        batches: uint8 pixels (N, C, H, W).
        device: Where the network is.
        layer: The path of a submodule, whose output it is; None for what the last layer takes in.

    Returns:
        float32 (N_total, D) on the CPU.

    Raises:
        ModelError: There is no such layer, or it gives no vector per image.
    """
    with _listening(model, layer) as heard:
        predict_logits(model, spec, batches, device=device)
    return torch.cat(heard)


@contextmanager
def _listening(model: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """Within the block every batch leaves its vectors in the list."""
    heard: list[Tensor] = []

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heard.append(_vectors(inputs[0], "the last layer's input", model))

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        heard.append(_vectors(output, f"--layer {layer}", model))

    if layer is None:
        hook = model.get_submodule(head_path(model)).register_forward_pre_hook(before)
    else:
        hook = _find(model, layer).register_forward_hook(after)
    try:
        yield heard
    finally:
        hook.remove()


def _find(model: nn.Module, layer: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in layers or not layer:
        top = [name for name in layers if name and name.count(".") < 2][:_SHOWN]
        raise ModelError(
            f"--layer {layer}: the model has no such layer; among others there are {', '.join(top)}"
        )
    return layers[layer]


def _vectors(output: object, what: str, model: nn.Module) -> Tensor:
    """(N, D) of what a layer gives for N images."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"{what} is {shape}, and not one vector, map or row of tokens per image")
    if output.ndim == 4:
        # Swin's blocks keep the channels last, all others second.
        is_last = type(model).__name__ == "SwinTransformer" and not _is_map(output, model)
        output = output.mean(dim=(1, 2) if is_last else (2, 3))
    elif output.ndim == 3:
        output = output.mean(dim=1)
    return output.float().cpu()


def _is_map(output: Tensor, model: nn.Module) -> bool:
    """Whether a map of Swin's has its channels second, as after its last permutation."""
    widths = {module.normalized_shape[0] for module in model.modules() if isinstance(module, nn.LayerNorm)}
    return output.shape[1] in widths and output.shape[3] not in widths
