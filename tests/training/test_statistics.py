"""The settings model.mean and model.std: checked, recorded, and what the network's input is normalized by."""

from pathlib import Path

import pytest
import torch
import yaml

from src.data.dataset import Dataset, load_dataset
from src.errors import ConfigError
from src.experiment.report_run import config_hash
from src.models.input_spec import InputSpec
from src.train import main
from src.training.checkpoint import load_checkpoint
from src.training.setup import set_up
from src.utils.config import Config
from src.utils.io import sha256
from tests.images import write_npz
from tests.training.test_trainer import make_config

pytestmark = pytest.mark.slow


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    path = write_npz(folder / "small.npz")
    return load_dataset(Config().data.model_copy(update={"root_dir": str(path)}), folder / "cache")


@pytest.mark.parametrize("kind", ["none", "file with others"])
def test_the_settings_win_and_are_recorded(dataset: Dataset, folder: Path, kind: str) -> None:
    config = make_config(model__mean=[0.25], model__std=[0.5])
    if kind != "none":
        own = set_up(make_config(), dataset).context
        content = {"model_state_dict": own.model.state_dict(), "input": own.spec.to_dict()}
        torch.save(content, folder / "w.pth")
        config = config.updated({"model.weights": str(folder / "w.pth")})
        assert (
            set_up(config.updated({"model.mean": None, "model.std": None}), dataset).context.spec == own.spec
        )
    setup = set_up(config, dataset)
    spec = setup.context.spec
    assert spec == InputSpec(1, 16, (0.25,), (0.5,))
    assert spec.normalize(torch.full((1, 1, 2, 2), 0.75)).unique().tolist() == [1.0]
    assert (setup.config.model.mean, setup.config.model.std) == ((0.25,), (0.5,))
    assert Config.from_dict(setup.config.to_dict()) == setup.config


@pytest.mark.usefixtures("dataset")
def test_a_run_records_them_and_its_checkpoint_holds_them() -> None:
    options = "--data small.npz --modality A --model shufflenet_v2_x0_5 --epochs 1 --set model.weights=none"
    more = ["--set", "experiment.name=mine", "--set", "model.mean=[0.25]", "--set", "model.std=[0.5]"]
    assert main([*options.split(), *more]) == 0
    best = load_checkpoint(Path("outputs/mine/checkpoints/best_model.pth"))
    assert (best["input"]["mean"], best["input"]["std"]) == ([0.25], [0.5])
    stored = Config.from_file("outputs/logs/mine/config.yaml")
    assert (stored.model.mean, stored.model.std) == ((0.25,), (0.5,))


def test_without_them_the_training_split_decides_as_before(dataset: Dataset) -> None:
    values = make_config().to_dict()
    del values["model"]["mean"], values["model"]["std"]  # as an earlier version stored it
    stored = Config.from_dict(values)
    assert (stored.model.mean, stored.model.std) == (None, None)
    spec = set_up(stored, dataset).context.spec
    assert (spec.mean, spec.std) == dataset.channel_statistics


def test_runs_of_earlier_versions_are_found_by_the_same_hash() -> None:
    values = Config().to_dict()
    data = ["device_cache", "exclude", "fit", "stratify", "on_near_duplicate", "near_duplicate_threshold"]
    data += ["columns", "images", "where", "classes"]
    later = {"data": data, "training": ("compile",), "model": ("mean", "std", "channel_adaptation")}
    earlier = {
        section: {key: value for key, value in keys.items() if key not in later.get(section, ())}
        for section, keys in values.items()
    }
    stored = Config.from_dict(earlier)
    assert config_hash(stored) == sha256(yaml.safe_dump(earlier, sort_keys=False).encode())
    assert config_hash(stored.updated({"data.fit": "pad"})) != config_hash(stored)
    assert config_hash(Config().updated({"model.mean": [0.5], "model.std": [0.5]})) != config_hash(Config())


def test_one_value_per_channel_is_needed(dataset: Dataset) -> None:
    config = make_config(model__mean=[0.5, 0.5, 0.5], model__std=[0.5, 0.5, 0.5])
    with pytest.raises(ConfigError, match=r"3 value\(s\), and the images have 1 channel\(s\)"):
        set_up(config, dataset)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.5]}, "set mean and std together"),
        ({"std": [0.5]}, "set mean and std together"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "with one value per channel each"),
        ({"mean": [], "std": []}, "mean"),
        ({"mean": [0.5], "std": [0]}, r"model\.std\.0: Input should be greater than 0"),
        ({"mean": [0.5], "std": [-0.1]}, r"model\.std\.0: Input should be greater than 0"),
        ({"mean": [0.5], "std": [float("nan")]}, r"model\.std\.0: Input should be"),
        ({"mean": [123.7], "std": [58.4]}, r"model\.mean\.0: Input should be less than or equal to 1"),
        ({"mean": 0.5, "std": 0.5}, r"model\.mean: Input should be a valid"),
        ({"mean": ["a"], "std": [0.5]}, r"model\.mean\.0: Input should be a valid number"),
    ],
)
def test_wrong_values_are_refused_at_load(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({"model": values})
