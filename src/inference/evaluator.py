"""Scores of a trained model on labeled images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset, load_dataset
from ..data.image_array import ImageSource
from ..data.listing import UNKNOWN
from ..data.sources import Inputs, load_inputs
from ..errors import ConfigError, DataError
from ..evaluation.intervals import Estimate, Patients, by_patient, estimate
from ..evaluation.metrics import softmax
from ..evaluation.predictions import Predictions, write_predictions
from ..evaluation.score_plots import save_score_plots
from ..models.forward import predict_logits
from ..utils.config import DataConfig
from ..utils.io import sha256
from .load_model import TrainedModel

ALL = "all"
SIDES = ("train", "val", "test", ALL)


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Images to score a model on, with their classes and patients.

    Attributes:
        split: ``train``, ``val``, ``test`` or ``all``.
        samples: Hash of each sample's pixels, N.
        patients: Index of each sample's patient, None where unknown, N.
        labels: Class indices, (N,).
        images: The images, to be read in batches.
        data_fingerprint: Hash of images, labels and patients.
        split_fingerprint: Hash of which images are in which split.
        notes: Sentences for the user.
        corrected: Kinds and counts of files that earlier versions decoded incorrectly, "" if none.
        bad: One message per image that could not be read.
    """

    split: str
    samples: tuple[str, ...]
    patients: tuple[int | None, ...]
    labels: NDArray[np.int64]
    images: ImageSource
    data_fingerprint: str
    split_fingerprint: str
    notes: tuple[str, ...]
    corrected: str
    bad: tuple[str, ...] = ()


def load_labeled_images(trained: TrainedModel, root: str, split: str) -> LabeledImages:
    """Find the labeled images to evaluate a model on.

    Args:
        trained: The model; the config of its run determines how images are found, split and decoded.
        root: Data to read; "" for the data of the model's run.
        split: A split as training would make it, or ``all`` for all images.

    Raises:
        ConfigError: ``split`` is unknown.
        DataError: The data cannot be used, or has other classes.
    """
    if split not in SIDES:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SIDES)}")
    config = trained.config.data
    if root:
        config = DataConfig.model_validate(config.model_dump() | {"root_dir": root})
    cache = trained.config.cache_dir
    if split == ALL:
        return _all(trained, load_inputs(config.root_dir, config, trained.classes, cache))
    return _side(trained, load_dataset(config, cache), split)


def _side(trained: TrainedModel, dataset: Dataset, split: str) -> LabeledImages:
    if dataset.classes != trained.classes:
        raise DataError(
            f"{dataset.root}: has the classes {', '.join(dataset.classes)}, but {trained.name} has "
            f"{', '.join(trained.classes)}; they must be the same, in this order"
        )
    if split not in dataset.splits:
        raise DataError(f"{dataset.root}: no split {split}; found {', '.join(dataset.splits)}")
    side = dataset.splits[split]
    return LabeledImages(
        split,
        side.hashes,
        side.patients,
        side.labels,
        dataset.images(split),
        dataset.fingerprint,
        dataset.split_fingerprint,
        dataset.warnings,
        dataset.corrected,
    )


def _all(trained: TrainedModel, inputs: Inputs) -> LabeledImages:
    labels = inputs.records.labels
    unknown = int((labels == UNKNOWN).sum())
    if unknown:
        raise DataError(
            f"the class of {unknown} of {len(labels)} images is unknown, so they cannot be scored; put each "
            f"into a folder named as its class ({', '.join(trained.classes)}), or list it in a manifest"
        )
    named = sorted({name for name in inputs.records.patients if name})
    numbers = {name: index for index, name in enumerate(named)}
    patients = tuple(numbers.get(name) for name in inputs.records.patients)
    samples = tuple(inputs.records.samples)
    lines = sorted(
        f"{trained.classes[label]}\t{patient}\t{sample}"
        for label, patient, sample in zip(labels, patients, samples, strict=True)
    )
    return LabeledImages(
        ALL,
        samples,
        patients,
        labels,
        inputs.images,
        sha256("\n".join(lines).encode()),
        sha256("\n".join(sorted(samples)).encode()),
        inputs.notes,
        inputs.corrected,
        inputs.bad,
    )


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Scores of a model on labeled images.

    Attributes:
        labeled: The images.
        probabilities: float64 (N, K).
        by_image: ``auc``, ``acc``, ``sensitivity``, ``specificity`` over images.
        patients: Predictions per patient, None if patients are unknown.
        by_patient: The same scores over patients; empty if patients are unknown or each has one image.
    """

    labeled: LabeledImages
    probabilities: NDArray[np.float64]
    by_image: Mapping[str, Estimate]
    patients: Patients | None
    by_patient: Mapping[str, Estimate]

    def metrics(self) -> dict[str, float]:
        """Return ``{split}_auc``, ``{split}_auc_low``, ``{split}_patient_auc``, ... without NaN bounds."""
        groups = {"": self.by_image, "patient_": self.by_patient}
        return {
            f"{self.labeled.split}_{unit}{name}{end}": value
            for unit, estimates in groups.items()
            for name, found in estimates.items()
            for end, value in (("", found.value), ("_low", found.low), ("_high", found.high))
            if not (end and math.isnan(value))
        }


def evaluate(trained: TrainedModel, labeled: LabeledImages) -> EvaluationResult:
    """Score a model on the images, in float32, at its recorded threshold."""
    network, images = trained.network, trained.batches(labeled.images, labeled.split)
    probabilities = softmax(predict_logits(network.model, network.spec, images, device=network.device))
    by_image = estimate(labeled.labels, probabilities, labeled.patients, trained.threshold)
    patients = by_patient(labeled.labels, probabilities, labeled.patients)
    if patients is None or len(patients.labels) in (0, len(labeled.labels)):
        return EvaluationResult(labeled, probabilities, by_image, patients, {})
    alone = [*range(len(patients.labels))]
    per_patient = estimate(patients.labels, patients.probabilities, alone, trained.threshold)
    return EvaluationResult(labeled, probabilities, by_image, patients, per_patient)


def write_result(result: EvaluationResult, trained: TrainedModel, folder: Path) -> tuple[Path, list[Path]]:
    """Write ``predictions/{split}.csv`` and ``plots/*.png``; return their paths."""
    labeled = result.labeled
    table = folder / "predictions" / f"{labeled.split}.csv"
    made = Predictions(
        labeled.samples, labeled.patients, labeled.labels, result.probabilities, trained.classes
    )
    write_predictions(table, made)
    plots = save_score_plots(
        folder / "plots",
        splits={labeled.split: (labeled.labels, result.probabilities)},
        classes=trained.classes,
        threshold=trained.threshold,
    )
    return table, plots
