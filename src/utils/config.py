"""The settings of a run: frozen, documented, and refused at load when they are wrong."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ..errors import ConfigError
from .config_data import AugmentConfig, DataConfig, Section
from .config_fields import (
    Compile,
    Means,
    RunName,
    Stds,
    Threshold,
)
from .overrides import check_text, explain, flatten, merge_dotted, read_yaml, relevant

EARLIER: dict[str, dict[str, Any]] = {
    "data": {
        "exclude": [".*", "*.jpe", "*.jfif", "*.webp", "*.gif", "*.jp2", "*.j2k", "*.pgm", "*.ppm"],
        "fit": "legacy",
        "stratify": "patients",
    },
    "training": {"backbone_learning_rate": None},
    "model": {"channel_adaptation": "summed"},
}
"""What was done before there was a setting for it."""
_STORED = {
    "data": {"root_dir", "modalities", "val_fraction", "split_seed", "on_leak", "cache_dir", "augment"},
    "training": {"epochs", "batch_size", "learning_rate", "optimizer", "schedule", "seed", "deterministic"},
}
"""Settings that every stored config holds, and that no one writes all by hand."""


def modernized(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``values`` as they are named today: ``model.pretrained: true | false`` is ``model.weights``.

    A stored config holds every setting of its time; what it lacks is what was done then: without
    ``data.exclude`` it leaves out what was left out, without ``data.fit`` it shows images as they were
    shown, without ``data.stratify`` it splits as was done, without ``training.backbone_learning_rate`` one
    rate is that of all, and without ``model.channel_adaptation`` it adapts filters as was done.

    Raises:
        ConfigError: ``model.pretrained`` is neither, or stands beside ``model.weights``.
    """
    sections = {name: section for name, section in values.items() if isinstance(section, Mapping)}
    stored = [name for name, keys in _STORED.items() if sections.get(name, {}).keys() >= keys]
    if stored and "model" in sections:
        stored.append("model")  # every version stored it, some with no more than a person writes
    values = {**values, **{name: {**EARLIER[name], **sections[name]} for name in stored}}
    model = values.get("model")
    if not (isinstance(model, Mapping) and "pretrained" in model):
        return dict(values)
    pretrained = model["pretrained"]
    if not isinstance(pretrained, bool) or "weights" in model:
        raise ConfigError(f"{source}: model.pretrained is true or false, and excludes model.weights")
    rest = {key: value for key, value in model.items() if key != "pretrained"}
    return {**values, "model": {**rest, "weights": "imagenet" if pretrained else "none"}}


__all__ = [
    "RECORD_KEYS",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "ModelConfig",
    "TrainingConfig",
]

RECORD_KEYS = ("best_metrics", "test_metrics", "selection", "updated_at", "mlflow")
"""Top-level keys of ``config/best_hparams/*.yaml`` that record a result; no settings, so not read here."""

_SHOWN = 10  # wrong settings in one message


class ModelConfig(Section):
    """Which network, and what it starts from."""

    name: str = Field("resnet18", min_length=1, description="any classification model of torchvision")
    weights: str = Field(
        "auto",
        min_length=1,
        description="auto (imagenet; demo: none), imagenet, none, or a state dict's path",
    )
    stem: Literal["auto", "imagenet", "small"] = Field(
        "auto", description="small: 3x3 first convolution without max-pool, for images up to 40 px"
    )
    channel_adaptation: Literal["exact", "summed"] = Field(
        "exact",
        description="of RGB filters; exact: by each color's mean and std; summed: as if these were equal",
    )
    mean: Means | None = Field(None, description="per channel, of pixels in [0, 1]; null: the weights' own")
    std: Stds | None = Field(None, description="goes with mean")

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std are set together, with one value per channel each")
        return self


class TrainingConfig(Section):
    """How the network is trained."""

    epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="passes over the training split; auto: by network and weights, as in README.md"
    )
    batch_size: int = Field(
        32, ge=2, description="images per pass, over all processes; batch normalisation needs two"
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="passes per optimizer step, which sees batch_size times as many images"
    )
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="peak learning rate; auto: by network and weights, as in README.md"
    )
    backbone_learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] | None = Field(
        "auto", description="of everything but the head; null: learning_rate; auto: by network and weights"
    )
    freeze_backbone_epochs: int = Field(0, ge=0, description="first epochs, in which only the head trains")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="adamw, adam, sgd (Nesterov)")
    weight_decay: float = Field(0.05, ge=0, description="of weights; biases and norms are left out")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    clip_grad_norm: float | None = Field(
        None, gt=0, description="longest gradient (L2 norm over all weights); null: any length"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="validate and keep a moving average of the weights; null: the weights"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label spread over all classes")
    sync_batchnorm: bool = Field(
        False, description="batch norm over the images of all processes (GPUs only), not of each alone"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: images of rarer classes count for more in the loss"
    )
    mixup_alpha: float = Field(
        0.0, ge=0, description="mix pairs of images and their labels, shares by Beta(alpha, alpha); 0: never"
    )
    schedule: Literal["cosine", "multistep", "none"] = Field("cosine", description="after the warm-up")
    warmup_epochs: int = Field(1, ge=0, description="epochs of linear warm-up")
    milestones: tuple[int, ...] = Field((), description="multistep: epochs after which the rate is cut")
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: factor of each cut")
    checkpoint_every_minutes: float = Field(10.0, gt=0, description="within an epoch that takes longer")
    save_in_background: bool = Field(
        True, description="train on while a checkpoint is written; takes memory for one, changes no result"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better val AUC; null: never"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="mixed precision; auto asks the device"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps"
    )
    compile: Compile = Field(
        "auto",
        description="CUDA graphs (same results, fewer launches); auto: where possible; on: or an error; off",
    )
    seed: int = Field(0, ge=0, description="weights, order of images, augmentation, dropout")
    deterministic: bool = Field(True, description="deterministic algorithms only: same seed, same bits")

    @property
    def images_per_step(self) -> int:
        """The images whose mean gradient makes one optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError("milestones are epochs from 1 upward, ascending")
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule multistep needs milestones, such as [50, 75]")
        return self


class EvaluationConfig(Section):
    """How a probability becomes a decision."""

    threshold: Threshold = Field(
        0.5, description="a number, or chosen on validation: youden, sensitivity>=0.90, specificity>=0.90"
    )


class ExperimentConfig(Section):
    """Where results go on disk."""

    name: RunName | None = Field(None, description="folder and run name; null: exp_{date}_{time}_{run id}")
    output_dir: str = Field("outputs", min_length=1, description="logs, checkpoints, plots and caches")


class Config(Section):
    """All settings of one run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    experiment: ExperimentConfig = ExperimentConfig()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """Validate ``values`` and return a config; missing settings take their defaults.

        Args:
            values: Nested mapping, section by section.
            source: Where the values came from, for messages.

        Raises:
            ConfigError: A key is unknown, a type wrong or a value out of range; each with its dotted path.
        """
        settings = {key: value for key, value in modernized(values, source).items() if key not in RECORD_KEYS}
        check_text(flatten(settings), source)
        try:
            # JSON mode is strict about types and yet reads a list as a tuple.
            return cls.model_validate_json(json.dumps(settings, default=str))
        except ValidationError as error:
            problems = relevant(error.errors())
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            shown = "; ".join(explain(cls, problem) for problem in problems[:_SHOWN])
            raise ConfigError(f"{source}: {shown}{more}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML config, or a ``config/best_hparams`` record, which is one too.

        Args:
            path: The file; None for the defaults.
            overrides: Values by dotted key that replace those of the file.

        Raises:
            ConfigError: The file is missing or not valid YAML, or a setting is wrong.
        """
        values = {} if path is None else modernized(read_yaml(Path(path)), str(path))
        return cls.from_dict(merge_dotted(values, overrides or {}), "settings" if path is None else str(path))

    @staticmethod
    def settings_in(path: str | Path) -> dict[str, Any]:
        """Return the settings that a YAML config names, by dotted key, without defaults.

        Raises:
            ConfigError: The file is missing or not valid YAML.
        """
        values = modernized(read_yaml(Path(path)), str(path))
        return flatten({key: value for key, value in values.items() if key not in RECORD_KEYS})

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; tuples become lists."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values

    def to_yaml(self, *, without: Sequence[str] = ()) -> str:
        """Return YAML text that `from_file` reads back to an equal config, without some dotted keys."""
        values = self.to_dict()
        for name in without:
            section, _, key = name.partition(".")
            del values[section][key]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """One value per dotted key, such as ``training.learning_rate``."""
        return flatten(self.to_dict())

    def updated(self, changes: Mapping[str, Any], source: str = "config") -> Self:
        """Return a validated copy with the dotted keys of ``changes`` replaced."""
        return self.from_dict(merge_dotted(self.to_dict(), changes), source)

    @property
    def cache_dir(self) -> Path:
        """Where decoded images and the demo are kept."""
        return Path(self.data.cache_dir or Path(self.experiment.output_dir) / "cache").expanduser()

    @property
    def output_dir(self) -> Path:
        """The folder of all runs."""
        return Path(self.experiment.output_dir).expanduser()

    @property
    def modality(self) -> str:
        """The modality as one tag; several are joined by ``+`` in the configured order."""
        return "+".join(self.data.modalities)
