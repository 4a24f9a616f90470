"""Build everything that a training needs from settings and data."""

from dataclasses import dataclass

import torch
from torch import nn

from ..data.batches import training_batches
from ..data.dataset import Dataset
from ..errors import ConfigError
from ..models.build import BuiltModel, build_model
from ..models.forward import ModelContext
from ..models.input_spec import InputSpec
from ..models.precision import has_unreached_weights, is_depthwise_bound
from ..utils.config import Config, TrainingConfig
from ..utils.distributed import SINGLE_PROCESS, ProcessGroup
from ..utils.memory import keep_freed_memory
from ..utils.runtime import fit_threads, pick_autocast, pick_device, seed_everything
from .compile import check_compile
from .ddp import has_batch_norm, sync_batch_norm
from .optim import ModelEma, make_optimizer, make_schedule, parameter_groups, resolve_defaults
from .step import TrainStep, make_loss

_NO_FLIP_MODALITIES = frozenset({"CT", "CR", "DX", "RF", "RG", "XA"})
"""DICOM modalities of body parts that are not symmetric: a flip moves heart and liver to the other side."""


@dataclass(frozen=True)
class Setup:
    """Resolved settings, model and training step of a training that is ready to start.

    Attributes:
        config: The settings with ``auto`` resolved, except for the device, so that other machines can resume.
        context: The model on its device.
        train_step: Optimizer, schedule and loss.
        notes: Notes for the user.
    """

    config: Config
    context: ModelContext
    train_step: TrainStep
    notes: tuple[str, ...]


def set_up(
    config: Config, dataset: Dataset, spec: InputSpec | None = None, group: ProcessGroup = SINGLE_PROCESS
) -> Setup:
    """Build the model, the optimizer, the schedule and the loss.

    Args:
        config: The settings.
        dataset: The data.
        spec: The model's input if the weights will be loaded from a checkpoint; None for a new training.
        group: The ranks of a distributed training.

    Raises:
        ModelError: The model cannot be built or its weights cannot be loaded.
        ConfigError: The device or the precision is not available, or a setting does not suit the data or
            the device.
    """
    config = resolve_defaults(config)
    _check_settings(config, dataset)
    device = pick_device(config.training.device, group.local_rank if group.is_distributed else None)
    fit_threads(sharing=group.local_world_size)
    keep_freed_memory()
    seed_everything(config.training.seed)
    built = build_model(
        config.model.name,
        num_classes=len(dataset.classes),
        channels=dataset.channels,
        size=dataset.size,
        stem=config.model.stem,
        weights=config.model.weights if spec is None else "none",
        exact=config.model.channel_adaptation == "exact",
    )
    autocast, precision_notes = _pick_autocast(config, device, built.model, dataset)
    flip, asymmetric = config.data.augment.horizontal_flip, dataset.modalities & _NO_FLIP_MODALITIES
    resolved = config.updated(
        {
            "data.image_size": dataset.size,
            "data.channels": dataset.channels_each,
            "data.augment.horizontal_flip": not asymmetric if flip == "auto" else flip,
            "data.window": None if dataset.window is None else list(dataset.window),
            "model.weights": built.weights if spec is None else config.model.weights,
            "model.stem": built.stem,
            "training.precision": "float32" if autocast is None else str(autocast).removeprefix("torch."),
        }
    )
    spec = spec or _input_spec(built, dataset, config)
    model = built.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if group.is_distributed and config.training.sync_batchnorm:
        model = sync_batch_norm(model, device)
    context = ModelContext(model, spec, device, autocast, group)
    check_compile(context, resolved.training)
    notes = (*built.notes, *precision_notes, *_notes(resolved, dataset))
    return Setup(resolved, context, _train_step(context, resolved.training, dataset), notes)


def _input_spec(built: BuiltModel, dataset: Dataset, config: Config) -> InputSpec:
    """Return the model's input.

    Mean and standard deviation come from the settings, else from the pretrained weights, else from the
    training split.
    """
    mean, std = config.model.mean or built.mean, config.model.std or built.std
    if mean is None or std is None:
        mean, std = dataset.channel_statistics
    return InputSpec(dataset.channels, dataset.size, mean, std)


def _check_settings(config: Config, dataset: Dataset) -> None:
    policy, mean = config.evaluation.threshold, config.model.mean
    if isinstance(policy, str) and len(dataset.classes) > 2:
        raise ConfigError(
            f"evaluation.threshold: {policy} needs two classes, and there are {len(dataset.classes)}; use 0.5"
        )
    if mean is not None and len(mean) != dataset.channels:
        raise ConfigError(
            f"model.mean and model.std: {len(mean)} value(s), and the images have {dataset.channels} "
            "channel(s) over all modalities; give one value per channel"
        )


def _pick_autocast(
    config: Config, device: torch.device, model: nn.Module, dataset: Dataset
) -> tuple[torch.dtype | None, list[str]]:
    """Return the dtype of mixed precision, None for float32, and notes if that is not the fastest one."""
    wanted = config.training.precision
    autocast = pick_autocast(wanted, device)
    if autocast is None or device.type != "cpu":
        return autocast, []
    if wanted == "auto" and is_depthwise_bound(model, dataset.channels, dataset.size):
        return None, []
    if not has_unreached_weights(model, dataset.channels, dataset.size):
        return autocast, []
    why = (
        f"images of {dataset.size} px are smaller than some kernels of {config.model.name} reach, and this "
        "version of torch computes wrong gradients for them in bfloat16 on a CPU"
    )
    if wanted != "auto":
        raise ConfigError(f"training.precision: {why}; use float32, or a larger data.image_size")
    return None, [f"training in float32: {why} (a larger data.image_size allows bfloat16, which is faster)"]


def _train_step(context: ModelContext, settings: TrainingConfig, dataset: Dataset) -> TrainStep:
    backbone = settings.backbone_learning_rate
    groups = parameter_groups(
        context.model,
        learning_rate=float(settings.learning_rate),
        weight_decay=settings.weight_decay,
        backbone_learning_rate=None if backbone is None else float(backbone),
    )
    optimizer = make_optimizer(groups, settings)
    labels, min_micro_batch = dataset.splits["train"].labels, _min_micro_batch(context, settings)
    batches = training_batches(
        len(labels), settings.images_per_step, seed=0, epoch=1, smallest=min_micro_batch
    )
    return TrainStep(
        optimizer,
        make_schedule(optimizer, settings, len(batches)),
        torch.amp.GradScaler(context.device.type, enabled=context.autocast == torch.float16),
        make_loss(settings, labels, context.device),
        micro_batch_size=settings.batch_size,
        min_micro_batch=min_micro_batch,
        clip_grad_norm=settings.clip_grad_norm,
        ema=None if settings.ema_decay is None else ModelEma(context.model, settings.ema_decay),
    )


def _min_micro_batch(context: ModelContext, settings: TrainingConfig) -> int:
    """Return the smallest micro-batch that batch norm can handle, over all ranks: two images per norm."""
    count = context.process_group.world_size
    if count == 1 or settings.sync_batchnorm or not has_batch_norm(context.model):
        return 2
    if settings.batch_size < 2 * count:
        raise ConfigError(
            f"training.batch_size: {settings.batch_size} over {count} processes is less than two images for "
            "each, which batch norm needs; raise it, or, on GPUs, set training.sync_batchnorm=true"
        )
    return 2 * count


def _notes(config: Config, dataset: Dataset) -> list[str]:
    """Return notes on settings that are probably a mistake."""
    settings, count = config.training, len(dataset.splits["train"])
    notes = []
    if settings.images_per_step > count:
        size = f"training.batch_size {settings.batch_size}"
        if settings.gradient_accumulation_steps > 1:
            size += f" x gradient_accumulation_steps {settings.gradient_accumulation_steps}"
        notes.append(f"{size} is larger than the {count} training images: each epoch is one step")
    if settings.freeze_backbone_epochs and config.model.weights == "none":
        notes.append(
            f"training.freeze_backbone_epochs {settings.freeze_backbone_epochs} freezes random weights "
            "(model.weights is none): the head learns from random features"
        )
    steps = int(settings.epochs) * -(-count // settings.images_per_step)
    span = 1 / (1 - (settings.ema_decay or 0))
    if span > steps:
        notes.append(
            f"training.ema_decay {settings.ema_decay} averages over about {span:,.0f} steps, "
            f"and the run has {steps}: the average stays close to the initial weights"
        )
    return notes
