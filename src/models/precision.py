"""What a CPU makes of a model's layers in bfloat16: some it computes wrong, some slowly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .forward import evaluating

_ENOUGH_DENSE_WORK = 1100
Look = Callable[[nn.Module, Tensor, Tensor], None]
"""What is done with a layer, its input and its output."""


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

    def look(layer: nn.Module, image: Tensor, _output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            found.append(any(_is_idle(layer, axis, image.shape[2 + axis]) for axis in (0, 1)))

    _run(model, channels, size, look)
    return any(found)


def is_bound_by_depthwise(model: nn.Module, channels: int, size: int) -> bool:
    """Whether convolutions with one filter per channel take so large a part that bfloat16 is slower.

    oneDNN computes their gradients faster in float32, and everything else in bfloat16. Measured on a CPU
    with AVX512-bf16 (torch 2.13), a training step in float32 takes 0.47 to 1.03 of that in bfloat16 for
    torchvision's models with up to 910 multiplications of other layers per output of these
    (MobileNet, MNASNet, ShuffleNet, EfficientNet), and 1.3 to 1.9 for those with 1,480 and more (MaxViT,
    ConvNeXt) or none. At 64 and at 224 px alike.

    Args:
        model: The model, on the CPU.
        channels: Channels of the images.
        size: Their height and width in pixels.
    """
    dense = depthwise = 0

    def look(layer: nn.Module, _image: Tensor, output: Tensor) -> None:
        nonlocal dense, depthwise
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            depthwise += output.numel()
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            dense += output.numel() * layer.weight[0].numel()

    _run(model, channels, size, look)
    return dense < _ENOUGH_DENSE_WORK * depthwise


def _run(model: nn.Module, channels: int, size: int, look: Look) -> None:
    """Runs two images through the model and looks at each layer without layers."""
    with _watched(model, look), evaluating(model), torch.inference_mode():
        model(torch.zeros(2, channels, size, size))


@contextmanager
def _watched(model: nn.Module, look: Look) -> Iterator[None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        look(layer, inputs[0], output)

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _is_idle(convolution: nn.Conv2d, axis: int, length: int) -> bool:
    """Whether a place of the kernel lies outside the input wherever the kernel is put along an axis."""
    kernel, stride = convolution.kernel_size[axis], convolution.stride[axis]
    padding, dilation = int(convolution.padding[axis]), convolution.dilation[axis]
    last = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride * stride
    starts = range(-padding, last - padding + 1, stride)
    return any(not any(0 <= start + place * dilation < length for start in starts) for place in range(kernel))
