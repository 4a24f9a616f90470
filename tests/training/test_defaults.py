"""What ``auto`` comes to, for every network of torchvision."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from src.data.dataset import load_dataset
from src.models.build import available_models
from src.train import main
from src.training.optim import resolve_defaults
from src.training.setup import set_up
from src.utils.config import Config
from src.utils.torchvision_import import torchvision
from tests.conftest import FROM_SCRATCH

# Family: pretrained (head, backbone, epochs), from scratch (rate, epochs).
CONVOLUTIONAL = ((1e-3, 1e-4, 30), (1e-3, 100))
NO_NORM = ((1e-3, 1e-4, 30), (1e-4, 100))
TRANSFORMER = ((1e-3, 2e-5, 30), (1e-4, 300))
FAMILIES = {
    r"alexnet": NO_NORM,
    r"convnext_.+": ((1e-3, 5e-5, 30), (1e-4, 300)),
    r"densenet\d+": CONVOLUTIONAL,
    r"efficientnet_.+": CONVOLUTIONAL,
    r"googlenet": CONVOLUTIONAL,
    r"inception_v3": CONVOLUTIONAL,
    r"maxvit_t": TRANSFORMER,
    r"mnasnet.+": CONVOLUTIONAL,
    r"mobilenet_.+": CONVOLUTIONAL,
    r"regnet_.+": CONVOLUTIONAL,
    r"resnet\d+": CONVOLUTIONAL,
    r"resnext.+": CONVOLUTIONAL,
    r"shufflenet_.+": CONVOLUTIONAL,
    r"squeezenet.+": NO_NORM,
    r"swin_.+": TRANSFORMER,
    r"vgg\d+": NO_NORM,
    r"vgg\d+_bn": CONVOLUTIONAL,
    r"vit_.+": TRANSFORMER,
    r"wide_resnet.+": CONVOLUTIONAL,
}


def resolved(**changes: Any) -> Config:
    values = {"data.root_dir": "d", "model.weights": "imagenet"}
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return resolve_defaults(Config().updated(values | changes))


def of(config: Config) -> tuple[object, object, object]:
    training = config.training
    return training.learning_rate, training.backbone_learning_rate, training.epochs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_rates_and_epochs(family: str) -> None:
    names = [name for name in available_models() if re.fullmatch(family, name)]
    assert names
    pretrained, (rate, epochs) = FAMILIES[family]
    for name in names:
        assert of(resolved(model__name=name)) == pretrained
        assert of(resolved(model__name=name, model__weights="w.pth")) == pretrained
        assert of(resolved(model__name=name, model__weights="none")) == (rate, None, epochs)


def test_every_network_is_of_one_family() -> None:
    for name in available_models():
        assert len([family for family in FAMILIES if re.fullmatch(family, name)]) == 1, name


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg11_bn", "squeezenet1_1", "googlenet", "mnasnet0_5"])
def test_the_lower_rate_from_scratch_is_that_of_networks_without_batch_norm(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, num_classes=2)
    has_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
    rate = resolved(model__name=name, model__weights="none").training.learning_rate
    assert rate == (1e-3 if has_norm else 1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training__learning_rate": 1e-2}, (1e-2, 1e-4, 30)),
        ({"training__learning_rate": 1e-5}, (1e-5, 1e-5, 30)),
        ({"training__backbone_learning_rate": None}, (1e-3, None, 30)),
        ({"training__backbone_learning_rate": 1e-2}, (1e-3, 1e-2, 30)),
        ({"training__epochs": 3}, (1e-3, 1e-4, 3)),
        ({"training__optimizer": "adam"}, (1e-3, 1e-4, 30)),
        ({"training__optimizer": "sgd"}, (1e-2, 1e-3, 30)),
        ({"training__optimizer": "sgd", "model__weights": "none"}, (1e-2, None, 100)),
        ({"data__root_dir": "demo"}, (1e-3, 1e-4, 5)),
        ({"data__root_dir": "demo", "model__weights": "auto"}, (1e-3, None, 5)),
    ],
)
def test_what_is_set_stays(changes: dict[str, Any], expected: tuple[object, ...]) -> None:
    assert of(resolved(**changes)) == expected


def test_a_stored_config_without_a_rate_of_the_backbone_has_one_rate() -> None:
    values = resolved(model__name="swin_t").to_dict()
    del values["training"]["backbone_learning_rate"]
    assert of(resolve_defaults(Config.from_dict(values))) == (1e-3, None, 30)
    by_hand = {"data": values["data"], "model": values["model"], "training": {"learning_rate": 1e-3}}
    assert of(resolve_defaults(Config.from_dict(by_hand))) == (1e-3, 2e-5, 30)


def test_weights_are_those_of_imagenet_but_for_the_demo() -> None:
    assert resolved(model__weights="auto").model.weights == "imagenet"
    assert resolved(model__weights="auto", data__root_dir="demo").model.weights == "none"
    assert resolved(model__weights="imagenet", data__root_dir="demo").model.weights == "imagenet"


def test_a_run_trains_by_the_numbers_that_it_records(npz: Path, folder: Path) -> None:
    state = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
    torch.save(state, folder / "w.pth")
    values = {"data.root_dir": str(npz), "model.name": "shufflenet_v2_x0_5", "model.weights": "w.pth"}
    config = Config().updated(values)
    dataset = load_dataset(config.data, folder / "cache")
    setup = set_up(config, dataset)
    assert of(setup.config) == (1e-3, 1e-4, 30)
    rates = {group["initial_lr"] for group in setup.train_step.optimizer.param_groups}
    assert rates == {1e-3, 1e-4}
    assert resolve_defaults(setup.config) == setup.config  # so that it is the same training again


def test_auto_is_a_word_of_mlflow_run_too(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(npz), "--overrides", "training.learning_rate=auto,training.epochs=auto"]
    assert main([*options, *FROM_SCRATCH, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate: 0.001" in shown
    assert "epochs: 100" in shown
