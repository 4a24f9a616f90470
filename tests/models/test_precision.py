"""Which convolutions have weights that never see a pixel."""

import pytest
import torch
from torch import nn

from src.models.build import build_model
from src.models.precision import has_unreached_weights, is_depthwise_bound


def by_gradient(layer: nn.Conv2d, size: int) -> bool:
    """The same found out by computing: some weight's gradient is zero on an image without zeros."""
    layer(torch.ones(1, 1, size, size)).sum().backward()
    assert layer.weight.grad is not None
    return bool((layer.weight.grad == 0).any())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (5, 2), (7, 3), (7, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_as_the_gradient_says(size: int, stride: int, kernel: int, padding: int, dilation: int) -> None:
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return
    layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation)
    assert has_unreached_weights(layer, 1, size) == by_gradient(layer, size)


@pytest.mark.parametrize(
    ("name", "is_bound"),
    [("mobilenet_v3_small", True), ("efficientnet_b0", True), ("resnet18", False), ("convnext_tiny", False)],
)
def test_models_of_depthwise_convolutions_are_told_apart(name: str, is_bound: bool) -> None:
    """As measured: the first two train faster in float32, the others in bfloat16, on a CPU that has it."""
    built = build_model(name, num_classes=2, channels=1, size=64, stem="auto", weights="none")
    for size in (64, 128):
        assert is_depthwise_bound(built.model, 1, size) == is_bound
