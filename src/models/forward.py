"""The forward pass shared by validation, prediction and feature extraction."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..utils.background import VALUES_PER_THREAD, at_most_threads
from ..utils.distributed import SINGLE_PROCESS, ProcessGroup
from ..utils.runtime import to_device
from .input_spec import InputSpec, unit_range
from .stem import head_path


@dataclass(frozen=True)
class ModelContext:
    """A model with its input, device, precision and ranks.

    Attributes:
        model: The model; in a distributed training, each rank has its own.
        spec: The input that the model expects.
        device: Device of the model.
        autocast: Dtype of mixed precision in training, None for float32.
        process_group: The ranks that train together.
    """

    model: nn.Module
    spec: InputSpec
    device: torch.device
    autocast: torch.dtype | None
    process_group: ProcessGroup = SINGLE_PROCESS


def predict_logits(
    model: nn.Module,
    spec: InputSpec,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Run the model over all batches in eval mode, without gradients.

    Every submodule keeps its training flag.

    Args:
        model: The model, already on ``device``.
        spec: The input that the model expects.
        batches: uint8 pixels (N, C, H, W), on any device.
        device: Device of the model.
        autocast: Dtype of mixed precision (``torch.bfloat16``), or None for float32.

    Returns:
        float32 logits (N_total, K) on the CPU, in the order of the batches.

    Raises:
        ValueError: ``batches`` is empty.
    """
    # Logits stay on the device until the end: copying each batch would wait for the device.
    logits: list[Tensor] = []
    with eval_mode(model):
        for batch in batches:
            with at_most_threads(batch.numel() // VALUES_PER_THREAD):
                pixels = spec.normalize(unit_range(to_device(batch, device)))
            with torch.inference_mode(), torch.autocast(device.type, autocast, autocast is not None):
                logits.append(model(pixels).float())
    if not logits:
        raise ValueError("predict_logits needs at least one batch of images")
    return torch.cat(logits).cpu()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode; restore the training flag of each submodule at the end."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def train_mode(model: nn.Module, *, freeze_backbone: bool) -> None:
    """Put the whole model, or with ``freeze_backbone`` only its head, into training mode.

    Frozen layers stay in eval mode: no gradient, fixed batch-norm statistics, no dropout.
    """
    model.train(not freeze_backbone).requires_grad_(not freeze_backbone)
    model.get_submodule(head_path(model)).train().requires_grad_()


_MAX_LISTED = 20


def extract_features(
    model: nn.Module,
    spec: InputSpec,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    layer: str | None = None,
) -> Tensor:
    """Run the model over all batches and return the output of a layer, one vector per image.

    Feature maps and the tokens of a transformer are averaged over their positions. The arguments are those of
    `predict_logits`, and ``layer``, the path of the submodule; None is the input of the last layer.

    Returns:
        float32 (N_total, D) on the CPU.

    Raises:
        ModelError: The layer is not found, or its output is not one vector, map or token list per image.
    """
    with _recording(model, layer) as vectors:
        predict_logits(model, spec, batches, device=device)
    return torch.cat(vectors)


@contextmanager
def _recording(model: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """Collect the vectors of every batch in the list."""
    found: list[Tensor] = []

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(_vectors(inputs[0], "the last layer's input", model))

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
        found.append(_vectors(output, f"--layer {layer}", model))

    if layer is None:
        hook = model.get_submodule(head_path(model)).register_forward_pre_hook(before)
    else:
        hook = _find(model, layer).register_forward_hook(after)
    try:
        yield found
    finally:
        hook.remove()


def _find(model: nn.Module, layer: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in layers or not layer:
        top = [name for name in layers if name and name.count(".") < 2][:_MAX_LISTED]
        raise ModelError(f"--layer {layer}: not found in the model; some of its layers are {', '.join(top)}")
    return layers[layer]


def _vectors(output: object, what: str, model: nn.Module) -> Tensor:
    """Return the output of a layer for N images as (N, D)."""
    if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"{what} is {shape}, not one vector, feature map or list of tokens per image")
    if output.ndim == 4:
        # Swin's blocks have the channels last, all others second.
        is_last = type(model).__name__ == "SwinTransformer" and not _is_map(output, model)
        output = output.mean(dim=(1, 2) if is_last else (2, 3))
    elif output.ndim == 3:
        output = output.mean(dim=1)
    return output.float().cpu()


def _is_map(output: Tensor, model: nn.Module) -> bool:
    """Return whether a feature map of Swin has its channels second, as after the last permutation."""
    widths = {module.normalized_shape[0] for module in model.modules() if isinstance(module, nn.LayerNorm)}
    return output.shape[1] in widths and output.shape[3] not in widths
