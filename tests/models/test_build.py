import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from src.errors import ModelError
from src.models.build import available_models, build_model
from src.models.stem import first_convolution, head_path, small_stem_families
from src.training.optim import parameter_groups

TESTED = ["resnet18", "resnet50", "swin_t", "convnext_tiny", "efficientnet_b0", "densenet121"]


def build(name: str, size: int = 64, channels: int = 1, stem: str = "auto") -> nn.Module:
    return build_model(name, num_classes=2, channels=channels, size=size, stem=stem).model


def test_models_are_the_classifiers() -> None:
    names = available_models()
    assert set(TESTED) | {"vgg11", "vit_b_16", "maxvit_t"} <= set(names)
    assert not [n for n in names if "quantized" in n or "rcnn" in n or "deeplab" in n or "r3d" in n]


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_model_takes_a_step(name: str, channels: int, size: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, channels=channels, size=size).model
    assert model.training
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-3, weight_decay=0.05))
    _, convolution = first_convolution(model)
    before = convolution.weight.detach().clone()
    logits = model(torch.rand(2, channels, size, size))
    cross_entropy(logits, torch.tensor([0, 2])).backward()
    optimizer.step()
    assert logits.shape == (2, 3)
    assert convolution.in_channels == channels
    assert not torch.equal(convolution.weight, before)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("squeezenet1_1", 1, 64),
        ("shufflenet_v2_x0_5", 2, 32),
        ("mobilenet_v3_small", 4, 32),
        ("mnasnet0_5", 1, 64),
        ("regnet_y_400mf", 3, 32),
        ("googlenet", 1, 64),
        ("inception_v3", 3, 80),
        ("vit_b_32", 1, 64),
    ],
)
def test_other_families_build(name: str, channels: int, size: int) -> None:
    model = build_model(name, num_classes=4, channels=channels, size=size).model.eval()
    with torch.no_grad():
        assert model(torch.rand(1, channels, size, size)).shape == (1, 4)
    head = model.get_submodule(head_path(model))
    assert getattr(head, "out_features", None) == 4 or getattr(head, "out_channels", None) == 4


@pytest.mark.parametrize(
    ("typo", "right"), [("resnet81", "resnet18"), ("ResNet18", "resnet18"), ("swint", "swin_t")]
)
def test_unknown_name_gets_the_nearest(typo: str, right: str) -> None:
    with pytest.raises(ModelError, match=rf"{typo}.*closest names.*\b{right}\b"):
        build(typo)


def test_same_seed_same_model_and_the_probe_leaves_the_generator_alone() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        built = build_model("efficientnet_b0", num_classes=2, channels=1, size=32)
        states.append({**built.model.state_dict(), "next": torch.rand(1)})
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert states[0]["features.0.1.num_batches_tracked"] == 0
    assert (built.weights, built.mean, built.std, built.notes) == ("none", None, None, ())


def resolution(model: nn.Module, layer: str, size: int) -> int:
    """Side of the feature map that the layer sees."""
    seen: list[int] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].shape[-1])
    )
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, size, size))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "layer", "small", "usual"),
    [
        ("resnet18", "layer1", 32, 8),
        ("densenet121", "features.denseblock1", 32, 8),
        ("shufflenet_v2_x0_5", "stage2", 32, 8),
        ("mobilenet_v3_small", "features.1", 32, 16),
        ("convnext_tiny", "features.1", 16, 8),
    ],
)
def test_small_stem_keeps_the_resolution(name: str, layer: str, small: int, usual: int) -> None:
    assert resolution(build(name, 32, stem="small"), layer, 32) == small
    assert resolution(build(name, 32, stem="imagenet"), layer, 32) == usual


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [("resnet18", 40, "small"), ("resnet18", 41, "imagenet"), ("squeezenet1_1", 40, "imagenet")],
)
def test_auto_stem_goes_by_size_and_family(name: str, size: int, stem: str) -> None:
    assert build_model(name, num_classes=2, channels=1, size=size).stem == stem


def test_small_stem_is_refused_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="squeezenet1_1") as error:
        build("squeezenet1_1", stem="small")
    assert all(family in str(error.value) for family in small_stem_families())
    with pytest.raises(ModelError, match="auto, imagenet or small"):
        build("resnet18", stem="tiny")


@pytest.mark.parametrize(
    ("name", "size", "advice"),
    [
        ("alexnet", 28, "too small .*data.image_size to 64 or more"),
        ("vit_b_16", 30, "multiple of 16 px, not 30 px: set data.image_size to 32"),
        ("maxvit_t", 64, "multiple of 224 px, not 64 px: set data.image_size to 224"),
    ],
)
def test_size_that_the_model_cannot_take_is_refused(name: str, size: int, advice: str) -> None:
    with pytest.raises(ModelError, match=rf"{name}.*{advice}"):
        build(name, size)
