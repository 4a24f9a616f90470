"""The settings of a run: frozen, documented, and validated when they are loaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ..errors import ConfigError
from .config_data import AugmentConfig, DataConfig, Section
from .config_fields import Compile, Means, Milestones, RunName, Stds, Threshold
from .config_yaml import check_utf8, describe_error, drop_follow_up_errors, flatten, merge_dotted, read_yaml
from .project import in_project

__all__ = ["AugmentConfig", "Config", "DataConfig", "TrainingConfig"]

EARLIER: dict[str, dict[str, Any]] = {
    "data": {
        "exclude": [".*", "*.jpe", "*.jfif", "*.webp", "*.gif", "*.jp2", "*.j2k", "*.pgm", "*.ppm"],
        "fit": "legacy",
        "stratify": "patients",
    },
    "training": {"backbone_learning_rate": None},
    "model": {"channel_adaptation": "summed"},
}
"""Settings of later versions, with the values that earlier versions used implicitly."""
_STORED = {
    "data": {"root_dir", "modalities", "val_fraction", "split_seed", "on_leak", "cache_dir", "augment"},
    "training": {"epochs", "batch_size", "learning_rate", "optimizer", "schedule", "seed", "deterministic"},
}
"""Keys of each section that every stored config has; configs written by hand lack some of them."""


def migrate_legacy_keys(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Rename old keys, and add the settings that a stored config of an earlier version lacks.

    ``model.pretrained: true | false`` becomes ``model.weights``. Missing settings get the values of
    `EARLIER`, so that an old run is read, split and trained again as it was.

    Raises:
        ConfigError: ``model.pretrained`` is not a boolean, or ``model.weights`` is set as well.
    """
    sections = {name: section for name, section in values.items() if isinstance(section, Mapping)}
    stored = [name for name, keys in _STORED.items() if sections.get(name, {}).keys() >= keys]
    if stored and "model" in sections:
        stored.append("model")  # its keys do not show whether it was stored: some versions had few
    values = {**values, **{name: {**EARLIER[name], **sections[name]} for name in stored}}
    model = values.get("model")
    if not (isinstance(model, Mapping) and "pretrained" in model):
        return dict(values)
    pretrained = model["pretrained"]
    if not isinstance(pretrained, bool) or "weights" in model:
        raise ConfigError(f"{source}: model.pretrained must be true or false, without model.weights")
    rest = {key: value for key, value in model.items() if key != "pretrained"}
    return {**values, "model": {**rest, "weights": "imagenet" if pretrained else "none"}}


RECORD_KEYS = ("best_metrics", "test_metrics", "selection", "updated_at", "mlflow")
"""Top-level keys of ``config/best_hparams/*.yaml`` that hold results; they are not settings."""

_MAPPINGS = ("data.where", "data.classes")
"""Settings whose keys the user chooses: each is one value."""
_SHOWN = 10  # wrong settings in one message


class ModelConfig(Section):
    """The network, its weights and its input."""

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
        description="of RGB filters; exact: with each color's mean and std; summed: without them",
    )
    mean: Means | None = Field(
        None, description="per channel, of pixels in [0, 1]; null: of the weights, else of the data"
    )
    std: Stds | None = Field(None, description="per channel; set together with mean")

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("set mean and std together, with one value per channel each")
        return self


class TrainingConfig(Section):
    """Optimization, and how the training runs."""

    epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="number of epochs; auto: by network and weights, see README.md"
    )
    batch_size: int = Field(32, ge=2, description="images per forward pass, over all processes")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="forward and backward passes per optimizer step"
    )
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="peak learning rate; auto: by network and weights, see README.md"
    )
    backbone_learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] | None = Field(
        "auto", description="of all layers but the head; null: learning_rate; auto: by network and weights"
    )
    freeze_backbone_epochs: int = Field(
        0, ge=0, description="first epochs, in which only the head is trained"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="adamw, adam, sgd (Nesterov)")
    weight_decay: float = Field(0.05, ge=0, description="weight decay, not applied to biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    clip_grad_norm: float | None = Field(
        None, gt=0, description="maximum L2 norm of the gradient; null: none"
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights to validate and save; null: none",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="fraction of each label spread over all classes"
    )
    sync_batchnorm: bool = Field(
        False, description="compute batch norm over the images of all processes; GPUs only"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: weight the loss by inverse class frequency"
    )
    mixup_alpha: float = Field(
        0.0, ge=0, description="mix pairs of images and labels with ratios from Beta(alpha, alpha); 0: off"
    )
    schedule: Literal["cosine", "multistep", "none"] = Field("cosine", description="after the warm-up")
    warmup_epochs: int = Field(1, ge=0, description="epochs of linear warm-up")
    milestones: Milestones = Field(
        (), description="multistep: epochs after which gamma is applied, or fractions of all, as [0.5, 0.75]"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: factor at each milestone")
    checkpoint_every_minutes: float = Field(
        10.0, gt=0, description="minutes between checkpoints within an epoch"
    )
    save_in_background: bool = Field(
        True, description="train while a checkpoint is written; needs memory for a copy, changes no result"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better val AUC; null: never"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="mixed precision; auto: the fastest that the device supports"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps"
    )
    compile: Compile = Field(
        "auto",
        description="CUDA graphs (faster, same results); auto: if possible; on: error if not possible",
    )
    seed: int = Field(0, ge=0, description="seed of weights, image order, augmentation and dropout")
    deterministic: bool = Field(True, description="deterministic algorithms only: same seed, same bits")

    @property
    def images_per_step(self) -> int:
        """Return the number of images per optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule multistep needs milestones, such as [50, 75]")
        return self


class EvaluationConfig(Section):
    """The operating threshold of the decisions."""

    threshold: Threshold = Field(
        0.5,
        description="a number, or chosen on val: youden, sensitivity>=0.90, specificity>=0.90",
    )


class ExperimentConfig(Section):
    """Name and folder of the results."""

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
        migrated = migrate_legacy_keys(values, source)
        settings = {key: value for key, value in migrated.items() if key not in RECORD_KEYS}
        check_utf8(flatten(settings), source)
        try:
            # JSON mode is strict about types and yet reads a list as a tuple.
            return cls.model_validate_json(json.dumps(settings, default=str))
        except ValidationError as error:
            problems = drop_follow_up_errors(error.errors())
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            shown = "; ".join(describe_error(cls, problem) for problem in problems[:_SHOWN])
            raise ConfigError(f"{source}: {shown}{more}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML config; the files in ``config/best_hparams`` are configs as well.

        Args:
            path: The file; None for the defaults.
            overrides: Values by dotted key that replace those of the file.

        Raises:
            ConfigError: The file is missing or not valid YAML, or a setting is wrong.
        """
        values = {} if path is None else migrate_legacy_keys(read_yaml(Path(path)), str(path))
        return cls.from_dict(merge_dotted(values, overrides or {}), "settings" if path is None else str(path))

    @staticmethod
    def settings_in(path: str | Path) -> dict[str, Any]:
        """Return the settings that a YAML config names, by dotted key, without defaults.

        Raises:
            ConfigError: The file is missing or not valid YAML.
        """
        values = migrate_legacy_keys(read_yaml(Path(path)), str(path))
        settings = {key: value for key, value in values.items() if key not in RECORD_KEYS}
        return flatten(settings, mappings=_MAPPINGS)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values; tuples become lists."""
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
        """Return one value per dotted key, such as ``training.learning_rate``."""
        return flatten(self.to_dict(), mappings=_MAPPINGS)

    def updated(self, changes: Mapping[str, Any], source: str = "config") -> Self:
        """Return a validated copy with the dotted keys of ``changes`` replaced."""
        return self.from_dict(merge_dotted(self.to_dict(), changes), source)

    @property
    def cache_dir(self) -> Path:
        """Return the folder of decoded images and of the demo."""
        return in_project(self.data.cache_dir or Path(self.experiment.output_dir) / "cache")

    @property
    def output_dir(self) -> Path:
        """Return the folder of all runs."""
        return in_project(self.experiment.output_dir)

    @property
    def modality(self) -> str:
        """Return the modality as one tag; several are joined by ``+`` in the configured order."""
        return "+".join(self.data.modalities)
