"""Convolution kernels that reach beyond their input, so that some of their weights see padding alone."""

import torch
from torch import Tensor, nn

from src.models.forward import evaluating


def has_idle_weights(model: nn.Module, channels: int, size: int) -> bool:
    """Whether some convolution has weights that no pixel ever reaches, at this image size.

    Their gradient is zero, and oneDNN leaves it uninitialised in bfloat16 (torch 2.13 on a CPU):
    results differ from run to run, and may be infinite.

    Args:
        model: The model, on the CPU.
        channels: Channels of the images.
        size: Their height and width in pixels.
    """
    found: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append(any(_is_idle(module, axis, inputs[0].shape[2 + axis]) for axis in (0, 1)))

    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(look) for module in convolutions]
    try:
        with evaluating(model), torch.inference_mode():
            model(torch.zeros(2, channels, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return any(found)


def _is_idle(convolution: nn.Conv2d, axis: int, length: int) -> bool:
    """Whether a place of the kernel lies outside the input wherever the kernel is put along an axis."""
    kernel, stride = convolution.kernel_size[axis], convolution.stride[axis]
    padding, dilation = int(convolution.padding[axis]), convolution.dilation[axis]
    last = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride * stride
    starts = range(-padding, last - padding + 1, stride)
    return any(not any(0 <= start + place * dilation < length for start in starts) for place in range(kernel))
