"""Which layers a CPU computes incorrectly, or slowly, in bfloat16."""

import torch
from torch import Tensor, nn

from .forward import eval_mode

_MIN_DENSE_WORK = 1100


def has_unreached_weights(model: nn.Module, channels: int, size: int) -> bool:
    """Return whether a convolution has weights that no pixel reaches at this image size.

    Their gradient is zero, but oneDNN leaves it uninitialized in bfloat16 (torch 2.13 on a CPU), so that
    results differ from run to run and may be infinite. The model must be on the CPU.
    """
    return any(
        isinstance(layer, nn.Conv2d) and any(_has_unreached(layer, axis, image[2 + axis]) for axis in (0, 1))
        for layer, image, _ in _run(model, channels, size)
    )


def is_depthwise_bound(model: nn.Module, channels: int, size: int) -> bool:
    """Return whether depthwise convolutions take so much of the time that bfloat16 is slower.

    oneDNN computes their gradients faster in float32, and everything else faster in bfloat16. Measured on a
    CPU with AVX512-bf16 (torch 2.13): for torchvision models with up to 910 multiplications of other layers
    per output of a depthwise convolution (MobileNet, MNASNet, ShuffleNet, EfficientNet), a training step in
    float32 takes 0.47 to 1.03 of the time in bfloat16; for models with 1,480 and more (MaxViT, ConvNeXt) or
    without such layers 1.3 to 1.9. The same holds at 64 and at 224 px. The model must be on the CPU.
    """
    dense = depthwise = 0
    for layer, _, output in _run(model, channels, size):
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1:
            depthwise += output.numel()
        else:
            dense += output.numel() * layer.weight[0].numel()
    return dense < _MIN_DENSE_WORK * depthwise


def _run(
    model: nn.Module, channels: int, size: int
) -> list[tuple[nn.Conv2d | nn.Linear, torch.Size, torch.Size]]:
    """Run two images through the model; return its convolutions and linear layers with their shapes."""
    found: list[tuple[nn.Conv2d | nn.Linear, torch.Size, torch.Size]] = []

    def hook(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((layer, inputs[0].shape, output.shape))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    with eval_mode(model), torch.inference_mode():
        model(torch.zeros(2, channels, size, size))
    for handle in handles:
        handle.remove()
    return found


def _has_unreached(convolution: nn.Conv2d, axis: int, length: int) -> bool:
    """Return whether an element of the kernel is outside the input at every position along an axis."""
    kernel, stride = convolution.kernel_size[axis], convolution.stride[axis]
    padding, dilation = int(convolution.padding[axis]), convolution.dilation[axis]
    last = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride * stride
    starts = range(-padding, last - padding + 1, stride)
    return any(not any(0 <= start + place * dilation < length for start in starts) for place in range(kernel))
