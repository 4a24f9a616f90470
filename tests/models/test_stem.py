from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from src.models.build import build_model
from src.models.input_spec import InputSpec
from src.models.pretrained import normalization
from src.models.state_dicts import fit_state
from src.models.stem import (
    DeterministicAveragePool,
    adapt_filters,
    adapt_stem,
    first_convolution,
    set_stem,
    shifted_by_stem,
)


def test_gray_image_gives_the_response_of_its_replication() -> None:
    filters, gray = torch.randn(8, 3, 7, 7), torch.rand(2, 1, 16, 16)
    want = conv2d(gray.expand(-1, 3, -1, -1), filters)
    torch.testing.assert_close(conv2d(gray, adapt_filters(filters, 1)), want, atol=1e-5, rtol=1e-5)


FAMILIES = ["resnet18", "densenet121", "vgg11", "convnext_tiny", "swin_t", "mobilenet_v3_small"]


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gray_image_gives_the_response_of_its_replication_as_normalized(name: str, channels: int) -> None:
    """After the layer that takes the difference of the means: exactly, but at the padded edge."""
    color, gray = (
        build_model(name, num_classes=2, channels=count, size=32, stem="imagenet") for count in (3, channels)
    )
    (path, _), (key, _) = first_convolution(color.model), shifted_by_stem(color.model)
    mean, std = normalization(name, 3)
    single = normalization(name, channels)
    filters = color.model.get_parameter(f"{path}.weight").detach()
    color.model.state_dict()[key].uniform_(-1, 1)  # a trained bias or mean
    fit_state(
        gray.model,
        color.model.state_dict(),
        source="x",
        small_stem=False,
        keep_head=True,
        normalizations=((mean, std), single),
    )
    pixels = torch.rand(2, 1, 32, 32)
    images = [
        InputSpec(3, 32, mean, std).normalize(pixels.expand(-1, 3, -1, -1)),
        InputSpec(channels, 32, *single).normalize(pixels.expand(-1, channels, -1, -1)),
    ]
    want, found = (
        responses(model.model.eval(), normed) for model, normed in zip((color, gray), images, strict=True)
    )
    torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-5)
    plain = conv2d(images[1], adapt_filters(filters, channels), stride=4)
    exact = conv2d(images[0], filters, stride=4)
    assert (plain - exact).abs().max() > 1e-3  # what the mean of the three statistics leaves


@torch.no_grad()
def responses(model: nn.Module, images: Tensor) -> Tensor:
    """Of the first convolution and of its batch norm where it has no bias, without the edge."""
    _, convolution = first_convolution(model)
    key, _ = shifted_by_stem(model)
    found: Tensor = convolution(images)
    if key.endswith("running_mean"):
        found = model.get_submodule(key.removesuffix(".running_mean"))(found)
    return found if convolution.padding in (0, (0, 0)) else found[..., 2:-2, 2:-2]


def test_equal_statistics_change_no_bit() -> None:
    filters, half = torch.randn(8, 3, 7, 7), (0.5,)
    for channels in (1, 2, 6):
        adapted, shift = adapt_stem(filters, channels, (half * 3, half * 3), (half * channels,) * 2)
        assert torch.equal(adapted, adapt_filters(filters, channels))
        assert not shift.any()


@pytest.mark.parametrize(("old", "new"), [(3, 6), (1, 3), (2, 4)])
def test_replicated_filters_keep_the_response_to_equal_channels(old: int, new: int) -> None:
    filters, gray = torch.randn(8, old, 3, 3), torch.rand(2, 1, 9, 9)
    adapted = adapt_filters(filters, new)
    assert adapted.shape == (8, new, 3, 3)
    want = conv2d(gray.expand(-1, old, -1, -1), filters)
    torch.testing.assert_close(conv2d(gray.expand(-1, new, -1, -1), adapted), want, atol=1e-5, rtol=1e-5)


def test_two_channels_take_red_and_green_rescaled() -> None:
    filters = torch.randn(8, 3, 3, 3)
    torch.testing.assert_close(adapt_filters(filters, 2), filters[:, :2] * 1.5)


def test_random_filters_for_gray_respond_as_strongly_as_those_for_rgb() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 7))
    with torch.no_grad():
        rgb = model(torch.randn(8, 3, 32, 32)).std()
        set_stem(model, "resnet18", channels=1, small=False)
        gray = model(torch.randn(8, 1, 32, 32)).std()
    assert gray == pytest.approx(rgb.item(), rel=0.1)


@pytest.mark.parametrize("sides", [(2, 2), (7, 7), (14, 14), (9, 20), (1, 5)])
@pytest.mark.parametrize("wanted", [(7, 7), (6, 6), (3, 5)])
def test_pooling_by_products_is_adaptive_pooling(sides: tuple[int, int], wanted: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *sides)
    pooled = DeterministicAveragePool(wanted).by_products(images)
    torch.testing.assert_close(pooled, adaptive_avg_pool2d(images, wanted), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "is_replaced"), [("alexnet", True), ("vgg11", True), ("resnet18", False)])
def test_pooling_to_several_cells_is_deterministic(name: str, is_replaced: bool) -> None:
    model: Any = build_model(name, num_classes=2, channels=1, size=64).model
    assert isinstance(model.avgpool, DeterministicAveragePool) == is_replaced
    assert torch.equal(model.avgpool(torch.ones(1, 1, 9, 9)), model.avgpool(torch.ones(1, 1, 8, 8)))
