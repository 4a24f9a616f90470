"""The search space: ranges and choices of settings, read from YAML and checked before the first trial."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from optuna.trial import Trial
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError
from ..utils.config import Config
from ..utils.config_yaml import read_yaml

Number = int | float
Plain = bool | int | float | str | None


class Parameter(BaseModel):
    """How one setting is searched: exactly one of ``log``, ``range`` and ``choices``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: tuple[Number, Number] | None = None
    range: tuple[Number, Number] | None = None
    choices: tuple[Plain, ...] | None = Field(None, min_length=1)
    when: dict[str, Plain] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [self.log, self.range, self.choices]
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of log, range and choices")
        low, high = self.log or self.range or (0, 1)
        if not low < high:
            raise ValueError(f"{low} is not below {high}")
        if self.log and low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {low}")
        return self

    @property
    def ends(self) -> tuple[Plain, ...]:
        """Return the extreme values; if they are valid, all values are."""
        return self.choices or self.log or self.range or ()

    def suggest(self, trial: Trial, key: str) -> Plain:
        """Sample the value for a trial."""
        if self.choices is not None:
            value: Plain = trial.suggest_categorical(key, self.choices)
            return value
        low, high = self.log or self.range or (0, 1)
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(key, low, high, log=self.log is not None)
        return trial.suggest_float(key, low, high, log=self.log is not None)


def _with_fractions(key: str, parameter: Parameter) -> Parameter:
    """Convert integer ends to floats if the setting accepts fractions."""
    ends = parameter.log or parameter.range
    if ends is None or not all(isinstance(end, int) for end in ends):
        return parameter
    try:
        Config().updated({key: ends[0] + 0.5})
    except ConfigError:  # an integer setting, or an unknown one, which is refused later
        return parameter
    kind = "log" if parameter.log else "range"
    return parameter.model_copy(update={kind: tuple(float(end) for end in ends)})


class Space:
    """The search space: parameters by the dotted keys of the settings."""

    def __init__(self, parameters: Mapping[str, Parameter], source: str) -> None:
        self.parameters = dict(parameters)
        self.source = source

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a search space.

        Raises:
            ConfigError: The file is missing, not YAML, or not a search space.
        """
        values = read_yaml(path)
        parameters: dict[str, Parameter] = {}
        for key, value in values.items():
            try:
                parameters[str(key)] = _with_fractions(str(key), Parameter.model_validate(value))
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(str(part) for part in problem["loc"])
                message = problem["msg"].removeprefix("Value error, ")
                raise ConfigError(f"{path}: {key}{': ' if where else ''}{where}: {message}") from None
        if not parameters:
            raise ConfigError(f"{path}: names no setting; config/sweep/default.yaml shows how")
        return cls(parameters, str(path))

    def check(self, base: Config) -> None:
        """Check that a config accepts every value of the space.

        Args:
            base: The settings that are not searched.

        Raises:
            ConfigError: A config would refuse a value, which the message names.
        """
        known = base.flat()
        for key, parameter in self.parameters.items():
            if key not in known:
                raise ConfigError(
                    f"{self.source}: {key} is not a setting; config/default_config.yaml lists all"
                )
            if key in ("model.name", "data.modalities", "experiment.name", "training.seed"):
                raise ConfigError(f"{self.source}: {key} cannot be searched; set it with an option")
            self._check_conditions(key, parameter)
            for value in parameter.ends:
                base.updated({**parameter.when, key: value}, self.source)

    def _check_conditions(self, key: str, parameter: Parameter) -> None:
        earlier = list(self.parameters)[: list(self.parameters).index(key)]
        for other, value in parameter.when.items():
            if other not in earlier:
                raise ConfigError(f"{self.source}: {key}: when: {other} must come before it")
            choices = self.parameters[other].choices
            if choices is None or value not in choices:
                raise ConfigError(f"{self.source}: {key}: when: {other} is never {value}")

    def suggest(self, trial: Trial) -> dict[str, Plain]:
        """Sample the settings for a trial, by their dotted keys."""
        chosen: dict[str, Plain] = {}
        for key, parameter in self.parameters.items():
            if all(chosen.get(other) == value for other, value in parameter.when.items()):
                chosen[key] = parameter.suggest(trial, key)
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {key: parameter.model_dump(mode="json") for key, parameter in self.parameters.items()}
