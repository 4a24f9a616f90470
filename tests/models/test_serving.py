from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from src.models.build import build_model
from src.models.forward import predict_logits
from src.models.input_spec import InputSpec
from src.models.serving import ServingModel
from src.models.stem import head_path
from src.tracking.pt2_check import checked_copy
from src.utils.torchvision_import import torchvision


def images(count: int, spec: InputSpec) -> Tensor:
    """Noise of differing brightness: images all alike give logits alike, whose differences are rounding."""
    brightness = torch.linspace(20, 256, count).view(-1, 1, 1, 1)
    return (torch.rand(count, spec.channels, spec.size, spec.size) * brightness).to(torch.uint8)


def temper(model: nn.Module, spec: InputSpec) -> None:
    """Standardises the logits: the softmax of a random deep network is a constant, easily equalled."""
    logits = predict_logits(model, spec, [images(8, spec)], device=torch.device("cpu"))
    head = model.get_submodule(head_path(model))
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
        head.weight.div_(logits.std(dim=0)[:, None])


def check_export(model: nn.Module, channels: int, size: int, path: Path) -> None:
    """Exports the model, loads it again, and compares it with the forward pass of training."""
    spec = InputSpec(channels, size, (0.4,) * channels, (0.2,) * channels)
    temper(model, spec)
    example = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    program = torch.export.export(ServingModel(model, spec), (example,), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, path)
    with checked_copy(path) as file:  # nothing of ours is refused when it is loaded
        served = torch.export.load(file).module()
    pixels = images(3, spec)
    want = predict_logits(model, spec, [pixels], device=torch.device("cpu")).softmax(dim=1)
    assert want.std(dim=0).max() > 0.01
    for count in (1, 3):
        got = served(pixels[:count])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want[:count], atol=1e-5, rtol=0)


def shallow_swin() -> nn.Module:
    model: nn.Module = torchvision.models.SwinTransformer(
        [4, 4], 24, depths=[2, 2], num_heads=[2, 4], window_size=[7, 7], num_classes=3
    )
    return model


def shallow_densenet() -> nn.Module:
    model: nn.Module = torchvision.models.DenseNet(block_config=(2, 2, 2, 2), num_classes=3)
    return model


# Tracing takes as long as the network is deep, so the models themselves are among the slow tests.
@pytest.mark.parametrize("make", [shallow_swin, shallow_densenet])
def test_exported_architecture_gives_the_probabilities_of_the_forward_pass(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    check_export(make(), 3, 32, tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet18", 1, 28),
        *[
            pytest.param(name, channels, size, marks=pytest.mark.exhaustive)
            for name in ("resnet50", "swin_t", "convnext_tiny", "efficientnet_b0", "densenet121")
            for channels, size in ((1, 32), (3, 64))
        ],
    ],
)
def test_exported_model_gives_the_probabilities_of_the_forward_pass(
    tmp_path: Path, name: str, channels: int, size: int
) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, channels=channels, size=size).model
    check_export(model, channels, size, tmp_path / "model.pt2")


def test_serving_puts_the_network_into_eval_mode() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))
    serving = ServingModel(network, InputSpec(1, 2, (0.5,), (0.5,)))
    pixels = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    assert torch.equal(serving(pixels), serving(pixels))
    assert serving(pixels).sum().item() == pytest.approx(1.0)
