"""Features: what a layer of the network gives, one vector per image."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .forward import predict_logits
from .spec import InputSpec
from .surgery import head_path

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
