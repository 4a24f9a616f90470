"""The settings of a run: frozen, documented, and refused at load when they are wrong."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.errors import ConfigError
from src.utils.config_errors import check_text, explain, relevant
from src.utils.config_fields import (
    EXCLUDE,
    ClassName,
    Compile,
    DeviceCache,
    Means,
    Modalities,
    Patterns,
    RunName,
    Stds,
    Threshold,
    Window,
)
from src.utils.config_history import modernized
from src.utils.dotted import flatten, merge_dotted
from src.utils.yaml_files import read_yaml

RECORD_KEYS = ("best_metrics", "test_metrics", "selection", "updated_at", "mlflow")
"""Top-level keys of ``config/best_hparams/*.yaml`` that record a result; no settings, so not read here."""

_AUTO_CACHE_SHARE = 0.25
_SHOWN = 10  # wrong settings in one message


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AugmentConfig(_Section):
    """Random changes of training images; batches are augmented as a whole on the training device."""

    horizontal_flip: Literal["auto"] | bool = Field(
        "auto", description="mirror left and right, half of the time; auto: unless DICOM says CT or X-ray"
    )
    vertical_flip: bool = Field(False, description="mirror top and bottom, half of the time")
    rotation: float = Field(10.0, ge=0, le=180, description="up to this many degrees either way")
    translation: float = Field(0.05, ge=0, le=0.5, description="up to this share of the side, each way")
    scale: float = Field(0.1, ge=0, le=0.9, description="zoom by up to this share, in or out")
    brightness: float = Field(0.1, ge=0, le=1, description="add up to this share of the full range")
    contrast: float = Field(0.1, ge=0, le=1, description="stretch around the image's mean by this share")


class DataConfig(_Section):
    """Which images, how they are split, and how they reach the network."""

    root_dir: str = Field(
        "demo",
        min_length=1,
        description="demo, a folder of images or with a manifest.csv, or a MedMNIST .npz",
    )
    exclude: Patterns = Field(
        EXCLUDE, description="names of files and folders to leave out; {stem}: beside an image of that name"
    )
    allow_outside_root: bool = Field(False, description="let a manifest name files outside its folder")
    modalities: Modalities = Field(
        ("A",), min_length=1, description="what to train on, as a list; several are stacked as channels"
    )
    image_size: Literal["auto"] | Annotated[int, Field(ge=8, le=4096)] = Field(
        "auto", description="side in pixels; auto: the images' own size, at most 224"
    )
    channels: Literal["auto", 1, 3] = Field(
        "auto", description="of each modality: 1 gray, 3 RGB; auto: what the images have"
    )
    fit: Literal["pad", "stretch", "legacy"] = Field(
        "pad", description="images that are not square: pad with black, or stretch; legacy: as older runs"
    )
    window: Window | None = Field(
        None,
        description="[low, high] for DICOM (in HU) and 16-bit images; "
        "null: the file's own, else percentiles of the training images",
    )
    patient_regex: str | None = Field(
        None, description="group 1 found in a file's name is its patient; null: each file is its own patient"
    )
    image_id_regex: str | None = Field(
        None, description="group 1 found in a file's name is what joins modalities; null: the whole name"
    )
    positive_class: ClassName | None = Field(
        None, description="the class that sensitivity is about (of two); null: the last by name"
    )
    val_fraction: float = Field(0.15, gt=0, lt=1, description="share of the images, where the split is ours")
    test_fraction: float = Field(0.15, ge=0, lt=1, description="share of the images, where the split is ours")
    stratify: Literal["auto", "images", "patients"] = Field(
        "auto",
        description="our split balances classes over images or patients; auto: images, not for the demo",
    )
    split_seed: int = Field(0, ge=0, description="seed of the split, apart from training.seed")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        None, description="cross-validation: all but test in this many parts by patient; null: none"
    )
    fold: int = Field(0, ge=0, description="cross-validation: the part to validate on, from 0")
    on_leak: Literal["drop", "error", "allow"] = Field(
        "drop", description="the same patient or image in two splits: drop it from training, error, or allow"
    )
    on_near_duplicate: Literal["report", "drop", "error", "group"] = Field(
        "report", description="val and test images like a training image; group: together in our own split"
    )
    near_duplicate_threshold: float = Field(0.97, gt=0, lt=1, description="correlation of their thumbnails")
    on_bad_image: Literal["error", "skip"] = Field("error", description="an image that cannot be read")
    cache_dir: str | None = Field(None, description="decoded images; null: {experiment.output_dir}/cache")
    cache_gb: float = Field(
        50.0, gt=0, description="of decoded images kept, in GB; the least recently used go first"
    )
    device_cache: DeviceCache = Field(
        "auto",
        description="keep decoded images on the GPU if they fit in this share of its free memory; auto: 0.25",
    )
    augment: AugmentConfig = AugmentConfig()

    @property
    def cache_share(self) -> float | None:
        """The share of a GPU's free memory for decoded images; None for none."""
        if isinstance(self.device_cache, float):
            return self.device_cache
        return _AUTO_CACHE_SHARE if self.device_cache == "auto" else None

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} is none of data.folds {self.folds}; they count from 0")
        return self


class ModelConfig(_Section):
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


class TrainingConfig(_Section):
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
        False, description="batch norm over the images of all processes; without, over each one's own"
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


class EvaluationConfig(_Section):
    """How a probability becomes a decision."""

    threshold: Threshold = Field(
        0.5, description="a number, or chosen on validation: youden, sensitivity>=0.90, specificity>=0.90"
    )


class ExperimentConfig(_Section):
    """Where results go on disk."""

    name: RunName | None = Field(None, description="folder and run name; null: exp_{date}_{time}_{run id}")
    output_dir: str = Field("outputs", min_length=1, description="logs, checkpoints, plots and caches")


class Config(_Section):
    """All settings of one run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    experiment: ExperimentConfig = ExperimentConfig()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """Checks ``values`` and makes a config of them; what is missing takes its default.

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
    def from_file(cls, path: str | Path) -> Self:
        """Reads a YAML config, or a ``config/best_hparams`` record, which is one too.

        Raises:
            ConfigError: The file is missing, no YAML, or holds a wrong setting.
        """
        return cls.from_dict(read_yaml(Path(path)), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; tuples become lists."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values

    def to_yaml(self, *, without: Sequence[str] = ()) -> str:
        """The config as YAML text that `from_file` reads back to an equal config, less some dotted keys."""
        values = self.to_dict()
        for name in without:
            section, _, key = name.partition(".")
            del values[section][key]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """One value per dotted key, such as ``training.learning_rate``."""
        return flatten(self.to_dict())

    def updated(self, changes: Mapping[str, Any], source: str = "config") -> Self:
        """A copy with the dotted keys in ``changes`` replaced, checked anew."""
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
