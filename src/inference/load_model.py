"""Load a trained model: network, config, classes and threshold."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import load_batches, sequential_batches
from ..data.image_array import ImageSource
from ..data.windows import CORRECT_FROM
from ..errors import ClaimError, UserError
from ..models.build import build_model
from ..models.forward import ModelContext
from ..models.input_spec import InputSpec
from ..tracking.logged_model import load_model
from ..tracking.names import CONFIG_FILE, DECODER_VERSION, registered_model_name
from ..tracking.registry import Registered, Version, read_registered, registered_names
from ..tracking.store import open_store
from ..tracking.stored_run import StoredRun, read_run
from ..training.checkpoint import load_checkpoint
from ..utils.cli import command
from ..utils.config import Config
from ..utils.console import track
from ..utils.runtime import fit_threads, keep_freed_memory, pick_device
from .model_reference import ModelReference

_NETWORK = "model."  # prefix of the network's weights in the logged model


@dataclass(frozen=True)
class TrainedModel:
    """A trained model on a device, in float32.

    Attributes:
        name: Name for messages, such as ``resnet18_A version 2``.
        network: The network with its input format and device.
        config: The resolved config of its training.
        classes: In index order; of two, the last is the positive one.
        threshold: The operating threshold that its run recorded.
        source: URI of the logged model, ``models:/m-...``; None for a checkpoint.
        run: The run that trained it; None for a checkpoint.
        version: The registered version, None if it was selected otherwise.
        decoding: The `FORMAT` of decoded images that it was trained with, 0 if none was recorded.
    """

    name: str
    network: ModelContext
    config: Config
    classes: tuple[str, ...]
    threshold: float
    source: str | None = None
    run: StoredRun | None = None
    version: Version | None = None
    decoding: int = 0

    def batches(self, images: ImageSource, title: str) -> Iterator[Tensor]:
        """Yield all images in order, on the model's device, with a progress bar."""
        batches = sequential_batches(np.arange(len(images)), self.config.training.batch_size)
        return track(load_batches(images, batches, self.network.device), title, len(batches))

    def notes(self, corrected: str) -> list[str]:
        """Return a sentence if files of the kinds in ``corrected`` were decoded differently in training."""
        if not corrected or self.decoding >= CORRECT_FROM:
            return []
        return [
            f"{self.name} was trained by an earlier version, which decoded some kinds of files incorrectly; "
            f"here: {corrected}. Their pixels now differ from those that it was trained on: train it again, "
            "or check its results"
        ]


def load_trained(reference: ModelReference, folder: Path, device: str = "auto") -> TrainedModel:
    """Load a trained model; no code stored with it is executed.

    Args:
        reference: The model to load.
        folder: Folder for files that are downloaded from a server.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.

    Raises:
        UserError: The model, file or device does not exist.
        ClaimError: The model is missing or damaged.
        TrackingError: The store failed.
    """
    target = pick_device(device)
    fit_threads()
    keep_freed_memory()
    if reference.checkpoint is not None:
        return _of_checkpoint(reference.checkpoint, target)
    open_store(must_exist=True)
    if reference.run_id is not None:
        run = read_run(reference.run_id)
        return _of_run(f"run {run.run_id}", run, run.model_source, None, folder=folder, device=target)
    registered = read_registered(registered_model_name(reference.model or "", reference.modality or ""))
    version = _version(registered, reference.version)
    name = f"{registered.name} version {version.number}"
    if version.run_id is None:
        raise ClaimError(f"{name} was registered manually without a run, so its settings are unknown")
    return _of_run(name, read_run(version.run_id), version.source, version, folder=folder, device=target)


def _version(registered: Registered, number: int | None) -> Version:
    if not registered.versions:
        there = ", ".join(sorted(registered_names())) or "nothing"
        raise UserError(
            f"{registered.name}: not registered, and {there} is; {command('promote')} registers the best run"
        )
    version = registered.champion if number is None else registered.versions.get(number)
    if version is None:
        what = "no version has the alias champion" if number is None else f"no version {number}"
        there = ", ".join(map(str, sorted(registered.versions)))
        raise UserError(f"{registered.name}: {what}; versions: {there}")
    return version


def _of_run(
    name: str,
    run: StoredRun,
    source: str | None,
    version: Version | None,
    *,
    folder: Path,
    device: torch.device,
) -> TrainedModel:
    if source is None:
        raise ClaimError(f"{name}: no logged model found; a run logs one when it finishes")
    loaded = load_model(source, folder / "model")
    path = run.fetch(CONFIG_FILE, folder)
    if path is None:
        raise ClaimError(f"{name}: the artifact {CONFIG_FILE} of run {run.run_id} is missing")
    config = Config.from_file(path)
    state = dict(loaded.module.state_dict())
    classes = tuple(map(str, loaded.metadata.get("classes", ())))
    threshold = float(loaded.metadata.get("threshold", math.nan))
    if len(classes) < 2 or math.isnan(threshold):
        raise ClaimError(f"{name}: no classes or no threshold in the metadata of {source}")
    try:
        mean, std = (tuple(float(x) for x in state.pop(key).flatten()) for key in ("mean", "std"))
        spec = InputSpec(len(mean), int(config.data.image_size), mean, std)
    except (KeyError, ValueError) as error:
        raise ClaimError(f"{name}: {source} is not a model of this project ({error})") from None
    weights = {key.removeprefix(_NETWORK): value for key, value in state.items()}
    network = _rebuild(name, config, classes, spec, weights=weights, device=device)
    recorded = run.tags.get(DECODER_VERSION, "")
    decoding = int(recorded) if recorded.isdecimal() else 0
    return TrainedModel(name, network, config, classes, threshold, source, run, version, decoding)


def _of_checkpoint(path: Path, device: torch.device) -> TrainedModel:
    checkpoint = load_checkpoint(path)
    try:
        config = Config.from_dict(checkpoint["config"], str(path))
        classes = tuple(checkpoint["classes"])
        spec = InputSpec.from_dict(checkpoint["input"])
        threshold = _recorded_threshold(checkpoint)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not a complete checkpoint of this project ({error!r})") from None
    network = _rebuild(
        str(path), config, classes, spec, weights=checkpoint["model_state_dict"], device=device
    )
    decoding = checkpoint.get("decoding", 0)
    return TrainedModel(str(path), network, config, classes, threshold, decoding=decoding)


def _recorded_threshold(checkpoint: Mapping[str, Any]) -> float:
    """Return the threshold of the epoch of the weights; before the first epoch only the policy exists."""
    rule = checkpoint["config"]["evaluation"]["threshold"]
    if not isinstance(rule, str):
        return float(rule)
    return float(checkpoint["history"][-1]["val_threshold"])


def _rebuild(
    name: str,
    config: Config,
    classes: tuple[str, ...],
    spec: InputSpec,
    *,
    weights: Mapping[str, Tensor],
    device: torch.device,
) -> ModelContext:
    """Build the network as training did, and load the weights."""
    model: nn.Module = build_model(
        config.model.name,
        num_classes=len(classes),
        channels=spec.channels,
        size=spec.size,
        stem=config.model.stem,
    ).model
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise ClaimError(f"{name}: the weights do not fit {config.model.name}: {why}") from None
    model = model.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ModelContext(model, spec, device, None)


def describe(trained: TrainedModel) -> str:
    """Return a line that describes a loaded model."""
    decided = f", threshold {trained.threshold:.4f}" if len(trained.classes) == 2 else ""
    return f"{trained.name}: {', '.join(trained.classes)}{decided}, on {trained.network.device}"
