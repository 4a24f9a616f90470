from collections.abc import Callable

import pytest
import torch
from torch import nn

from src.models.build import build_model
from src.models.forward import train_mode
from src.models.stem import head_path
from src.training.optim import parameter_groups


def build(name: str) -> nn.Module:
    return build_model(name, num_classes=2, channels=1, size=64).model


def _is_vector(model: nn.Module) -> Callable[[torch.Tensor], bool]:
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    vectors = {id(p) for m in norms for p in m.parameters()}
    vectors |= {id(p) for n, p in model.named_parameters() if n.endswith(("bias", "layer_scale"))}
    return lambda p: id(p) in vectors


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_norms_and_biases_do_not_decay(name: str) -> None:
    model = build(name)
    decayed, free = parameter_groups(model, learning_rate=1e-3, weight_decay=0.05)
    is_vector = _is_vector(model)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert (decayed["lr"], free["lr"]) == (1e-3, 1e-3)
    assert free["params"]
    assert all(is_vector(p) for p in free["params"])
    assert not any(is_vector(p) for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_the_backbone_has_a_rate_of_its_own() -> None:
    model = build("resnet18")
    groups = parameter_groups(model, learning_rate=1e-3, weight_decay=0.05, backbone_learning_rate=1e-4)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-3, 0.05),
        (1e-3, 0.0),
        (1e-4, 0.05),
        (1e-4, 0.0),
    ]
    fast = {id(p) for group in groups[:2] for p in group["params"]}
    assert fast == {id(p) for name, p in model.named_parameters() if name.startswith("fc.")}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_frozen_parameters_are_held_for_the_time_when_they_thaw() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    train_mode(model, freeze_backbone=True)
    groups = parameter_groups(model, learning_rate=0.1, weight_decay=0.1)
    assert {p for group in groups for p in group["params"]} == set(model.parameters())


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_frozen_backbone_is_at_rest(name: str) -> None:
    """The dropout before MobileNet's and SqueezeNet's head is no part of the head."""
    torch.manual_seed(0)
    model, images = build(name), torch.rand(2, 1, 64, 64)
    train_mode(model, freeze_backbone=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outputs = model(images)
    assert torch.equal(outputs, model(images))
    outputs.sum().backward()
    head = head_path(model)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"{head}.weight",
        f"{head}.bias",
    }
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    train_mode(model, freeze_backbone=False)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
