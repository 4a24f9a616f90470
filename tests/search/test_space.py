"""What a search may try is checked before the first trial."""

from pathlib import Path

import optuna
import pytest

from src.errors import ConfigError
from src.search.space import Space
from src.utils.config import Config
from tests.conftest import ROOT


def space(folder: Path, text: str) -> Space:
    (folder / "space.yaml").write_text(text)
    return Space.from_file(folder / "space.yaml")


def test_the_shipped_space_is_allowed() -> None:
    for path in (ROOT / "config/sweep").glob("*.yaml"):
        Space.from_file(path).check(Config())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.learning_rates: {log: [1e-4, 1e-2]}", "training.learning_rates is not a setting"),
        (
            "training.learning_rate: {log: [-1, 1]}",
            "training.learning_rate: a logarithmic range starts above",
        ),
        ("training.learning_rate: {range: [-1, 1]}", "training.learning_rate"),
        ("training.momentum: {range: [0.5, 1.5]}", "training.momentum"),
        ("training.optimizer: {choices: [adamw, lion]}", "training.optimizer"),
        ("training.optimizer: {choices: []}", "training.optimizer: choices"),
        ("training.optimizer: {log: [1, 2], choices: [a]}", "give exactly one of log, range and choices"),
        ("training.momentum: {range: [0.9, 0.8]}", "0.9 is not below 0.8"),
        (
            "training.momentum: {range: [0.5, 0.9], when: {training.optimizer: sgd}}",
            "must come before",
        ),
        (
            "training.optimizer: {choices: [adam]}\n"
            "training.momentum: {range: [0.5, 0.9], when: {training.optimizer: sgd}}",
            "training.optimizer is never sgd",
        ),
        ("training.seed: {range: [0, 5]}", "training.seed cannot be searched"),
        ("{}", "names no setting"),
    ],
)
def test_what_a_config_would_refuse_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"space\.yaml") as refused:
        space(folder, text).check(Config())
    assert message in str(refused.value)


def test_what_is_tried_is_in_the_space(folder: Path) -> None:
    text = """
training.optimizer: {choices: [adamw, sgd]}
training.momentum: {range: [0.8, 0.9], when: {training.optimizer: sgd}}
training.learning_rate: {log: [1e-4, 1e-2]}
training.warmup_epochs: {range: [0, 2]}
"""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    tried = [space(folder, text).suggest(study.ask()) for _ in range(200)]
    assert {values["training.optimizer"] for values in tried} == {"adamw", "sgd"}
    for values in tried:
        assert ("training.momentum" in values) == (values["training.optimizer"] == "sgd")
        Config().updated(values)
    rates = [float(values["training.learning_rate"] or 0) for values in tried]
    assert 0.35 < sum(rate < 1e-3 for rate in rates) / len(rates) < 0.65  # as many below as above the middle
    assert {values["training.warmup_epochs"] for values in tried} == {0, 1, 2}


def test_whole_ends_of_a_setting_that_takes_fractions_leave_them_in(folder: Path) -> None:
    (folder / "space.yaml").write_text(
        "training.weight_decay: {range: [0, 1]}\ntraining.freeze_backbone_epochs: {range: [0, 3]}"
    )
    space = Space.from_file(folder / "space.yaml")
    chosen = space.suggest(optuna.create_study().ask())
    assert isinstance(chosen["training.weight_decay"], float)
    assert isinstance(chosen["training.freeze_backbone_epochs"], int)
