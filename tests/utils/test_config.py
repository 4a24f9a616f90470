"""Config: read back what was written, refuse what is wrong, and say where."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from src.errors import ConfigError
from src.training.optim import resolve_defaults
from src.utils.config import Config, migrate_legacy_keys
from src.utils.config_yaml import merge_dotted, parse_overrides, split_overrides
from tests.conftest import ROOT


def test_round_trip(folder: Path) -> None:
    config = Config.from_dict(
        {
            "data": {"modalities": ["P"], "image_size": 64, "augment": {"rotation": 0}},
            "training": {"schedule": "multistep", "milestones": [2, 4]},
            "evaluation": {"threshold": "sensitivity>=0.90"},
        }
    )
    (folder / "c.yaml").write_text(config.to_yaml())
    assert Config.from_file(folder / "c.yaml") == config
    assert config.training.milestones == (2, 4)


def test_default_config_file_shows_every_setting() -> None:
    path = ROOT / "config/default_config.yaml"
    assert Config.from_file(path) == Config()
    assert yaml.safe_load(path.read_text()) == Config().to_dict()
    text = path.read_text()
    for description in descriptions(Config):
        assert f"# {description}" in text


def descriptions(model: type[BaseModel]) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += descriptions(field.annotation)
        else:
            assert field.description, name
            found.append(field.description)
    return found


CONFIGS = [path for path in sorted((ROOT / "config").rglob("*.yaml")) if path.parent.name != "sweep"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert int(resolve_defaults(Config.from_file(path)).training.epochs) >= 1


def test_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().training.epochs = 3  # type: ignore[misc]


def test_a_bare_on_or_off_is_a_word(folder: Path) -> None:
    """YAML 1.1 reads them as truth values."""
    (folder / "c.yaml").write_text("data: {device_cache: off}\ntraining: {compile: on}")
    config = Config.from_file(folder / "c.yaml")
    assert (config.data.device_cache, config.training.compile) == ("off", "on")
    assert config.data.cache_share is None
    (folder / "again.yaml").write_text(config.to_yaml())
    assert Config.from_file(folder / "again.yaml") == config
    assert Config.from_dict({"data": {"device_cache": 0.5}}).data.cache_share == 0.5


def test_exponents_without_a_dot_are_numbers(folder: Path) -> None:
    (folder / "c.yaml").write_text("training: {learning_rate: 1e-4, weight_decay: 5E-2}")
    assert Config.from_file(folder / "c.yaml").training.learning_rate == 1e-4
    assert Config.from_file(folder / "c.yaml").training.weight_decay == 5e-2


@pytest.mark.parametrize(("pretrained", "weights"), [(True, "imagenet"), (False, "none")])
def test_older_files_say_pretrained(pretrained: bool, weights: str) -> None:
    assert Config.from_dict({"model": {"pretrained": pretrained}}).model.weights == weights


def test_a_stored_config_adapts_filters_as_the_build_that_wrote_it() -> None:
    stored = Config().to_dict()
    del stored["model"]["channel_adaptation"]
    assert Config.from_dict(stored).model.channel_adaptation == "summed"
    stored["model"] = {"pretrained": True}
    config = Config.from_dict(stored)
    assert (config.model.channel_adaptation, config.model.weights) == ("summed", "imagenet")
    assert Config.from_dict({"model": {"weights": "imagenet"}}).model.channel_adaptation == "exact"


def test_an_option_wins_over_the_pretrained_of_an_older_file() -> None:
    merged = merge_dotted(
        migrate_legacy_keys({"model": {"pretrained": True}}, "old.yaml"), {"model.weights": "none"}
    )
    assert Config.from_dict(merged).model.weights == "none"


def test_result_records_are_configs_too() -> None:
    record = Config().to_dict() | {"best_metrics": {"val_auc": 0.9}, "mlflow": None, "updated_at": "now"}
    assert Config.from_dict(record) == Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"epochs": True}}, "training.epochs"),
        ({"training": {"epochs": 2.5}}, "training.epochs"),
        ({"training": {"learning_rate": "1e-3x"}}, "training.learning_rate"),
        ({"training": {"learning_rate": float("inf")}}, "finite"),
        ({"training": {"batch_size": 1}}, "training.batch_size"),
        ({"training": {"schedule": "multistep"}}, "milestones"),
        ({"training": {"freeze_backbone_epochs": -1}}, "training.freeze_backbone_epochs"),
        ({"training": {"backbone_learning_rate": 0}}, "training.backbone_learning_rate"),
        ({"training": {"label_smoothing": 1}}, "training.label_smoothing"),
        ({"training": {"class_weights": "balance"}}, "training.class_weights"),
        ({"training": {"clip_grad_norm": 0}}, "training.clip_grad_norm"),
        ({"training": {"ema_decay": 1}}, "training.ema_decay"),
        ({"training": {"gradient_accumulation_steps": 0}}, "training.gradient_accumulation_steps"),
        ({"training": {"mixup_alpha": -0.1}}, "training.mixup_alpha"),
        ({"data": {"augment": {"rotatio": 1}}}, "data.augment.rotation?"),
        ({"data": {"image_size": 3}}, "data.image_size"),
        ({"data": {"device_cache": 1.5}}, "data.device_cache"),
        ({"data": {"device_cache": "on"}}, "data.device_cache"),
        ({"training": {"compile": "yes"}}, "training.compile"),
        ({"data": {"modalities": []}}, "data.modalities"),
        ({"data": {"modalities": "A"}}, "data.modalities"),
        ({"evaluation": {"threshold": 1.5}}, "between 0 and 1"),
        ({"evaluation": {"threshold": "sensitivity>=1.2"}}, "youden"),
        ({"experiment": {"name": "../x"}}, "experiment.name"),
        ({"experiment": {"name": "cache"}}, "all runs share"),
        ({"data": {"modalities": ["A\n"]}}, "data.modalities"),
        ({"model": {"pretrained": True, "weights": "none"}}, "model.pretrained"),
        ({"training": None}, "training"),
        ({"trainin": {}}, "did you mean training?"),
    ],
)
def test_refused_with_path_and_file(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^some\.yaml: ") as error:
        Config.from_dict(values, "some.yaml")
    assert message in str(error.value)


def test_a_key_that_stands_twice_is_refused(folder: Path) -> None:
    (folder / "c.yaml").write_text("training:\n  epochs: 3\n  epochs: 4\n")
    with pytest.raises(ConfigError, match=r"duplicate key 'epochs' \(line 2"):
        Config.from_file(folder / "c.yaml")


def test_overrides() -> None:
    items = split_overrides(
        "training.epochs=3,training.milestones=[1, 2],data.patient_regex=^(a,b)_,model.name=x"
    )
    assert items == [
        "training.epochs=3",
        "training.milestones=[1, 2]",
        "data.patient_regex=^(a,b)_",
        "model.name=x",
    ]
    assert parse_overrides(["training.learning_rate=1e-4", "experiment.name=null"]) == {
        "training.learning_rate": 1e-4,
        "experiment.name": None,
    }
    merged = merge_dotted({"training": {"epochs": 1, "seed": 2}}, {"training.epochs": 3, "model.name": "x"})
    assert merged == {"training": {"epochs": 3, "seed": 2}, "model": {"name": "x"}}


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(["data", "training", "model", "evaluation", "experiment", "x"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_keys, _values, max_size=4))
def test_no_values_give_anything_but_a_config_error(values: dict[str, Any]) -> None:
    try:
        Config.from_dict(values)
    except ConfigError as error:
        assert str(error).startswith("config: ")  # noqa: PT017


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:[]{}-!&*?|>%@'\"#,\n 01.e\t"), max_size=30))
def test_no_text_gives_anything_but_a_config_error(text: str) -> None:
    try:
        parse_overrides([f"a.b={text}"])
    except ConfigError as error:
        assert re.match(r"--set ", str(error))  # noqa: PT017


def test_a_class_may_be_named_by_a_number() -> None:
    assert Config().updated(parse_overrides(["data.positive_class=0"])).data.positive_class == "0"
    assert Config().updated(parse_overrides(["data.positive_class='007'"])).data.positive_class == "007"
    for value in ("true", "0.0"):
        with pytest.raises(ConfigError, match=r"data\.positive_class: YAML reads this as .*; quote the name"):
            Config().updated(parse_overrides([f"data.positive_class={value}"]))


def test_a_path_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.root_dir: .*udcff is not valid UTF-8; rename"):
        Config().updated({"data.root_dir": "caf\udcff"})


def test_a_number_out_of_range_is_reported_once() -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict({"training": {"epochs": 0}, "data": {"channels": 2}})
    channels = "data.channels: Input should be 'auto', 1 or 3 (got 2)"
    epochs = "training.epochs: Input should be greater than or equal to 1 (got 0)"
    assert str(error.value) == f"config: {channels}; {epochs}"
