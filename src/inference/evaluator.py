"""Scores of a trained model on labeled images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset, load_dataset
from ..data.image_array import ImageSource
from ..data.samples import UNKNOWN
from ..data.sources import Inputs, load_inputs
from ..errors import ConfigError, DataError
from ..evaluation.intervals import Estimate, Patients, by_patient, estimate
from ..evaluation.metrics import softmax
from ..evaluation.predictions import write_predictions
from ..evaluation.score_plots import save_score_plots
from ..models.forward import predict_logits
from ..utils.config import DataConfig
from ..utils.io import sha256
from .trained import TrainedModel

ALL = "all"
SIDES = ("train", "val", "test", ALL)


@dataclass(frozen=True, eq=False)
class Cases:
    """Labelled images.

    Attributes:
        split: ``train``, ``val``, ``test`` or ``all``.
        samples: Hash of each sample's pixels, N.
        patients: Index of each sample's patient, None where unknown, N.
        labels: Class indices, (N,).
        images: The images, to be read in batches.
        data_fingerprint: Names images, labels and patients.
        split_fingerprint: Names which images are on which side.
        notes: Sentences to show.
        corrected: Kinds and numbers of files that earlier versions read wrongly, "" without.
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


def load_cases(trained: TrainedModel, root: str, split: str) -> Cases:
    """Find the labeled images to evaluate a model on.

    Args:
        trained: The model; its run's settings say how images are found, split and decoded.
        root: What to read instead of the run's own data; empty for that.
        split: A side of the split that training would make of it, or ``all`` of its images.

    Raises:
        ConfigError: There is no such split.
        DataError: The data cannot be used, or is of other classes.
    """
    if split not in SIDES:
        raise ConfigError(f"--split {split}: one of {', '.join(SIDES)} belongs here")
    config = trained.config.data
    if root:
        config = DataConfig.model_validate(config.model_dump() | {"root_dir": root})
    cache = trained.config.cache_dir
    if split == ALL:
        return _all(trained, load_inputs(config.root_dir, config, trained.classes, cache))
    return _side(trained, load_dataset(config, cache), split)


def _side(trained: TrainedModel, dataset: Dataset, split: str) -> Cases:
    if dataset.classes != trained.classes:
        raise DataError(
            f"{dataset.root}: has the classes {', '.join(dataset.classes)}, and {trained.name} knows "
            f"{', '.join(trained.classes)}; they must be the same, in this order"
        )
    if split not in dataset.splits:
        raise DataError(f"{dataset.root}: has no {split}; there are {', '.join(dataset.splits)}")
    side = dataset.splits[split]
    return Cases(
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


def _all(trained: TrainedModel, inputs: Inputs) -> Cases:
    labels = inputs.records.labels
    unknown = int((labels == UNKNOWN).sum())
    if unknown:
        raise DataError(
            f"the class of {unknown} of {len(labels)} images is not told, so they cannot be judged; put each "
            f"into a folder named as its class ({', '.join(trained.classes)}), or name it in a manifest"
        )
    named = sorted({name for name in inputs.records.patients if name})
    numbers = {name: index for index, name in enumerate(named)}
    patients = tuple(numbers.get(name) for name in inputs.records.patients)
    samples = tuple(inputs.records.samples)
    lines = sorted(
        f"{trained.classes[label]}\t{patient}\t{sample}"
        for label, patient, sample in zip(labels, patients, samples, strict=True)
    )
    return Cases(
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
class Judgement:
    """What a model scores on labelled images.

    Attributes:
        cases: The images.
        probabilities: float64 (N, K).
        by_image: ``auc``, ``acc``, ``sensitivity``, ``specificity`` over images.
        patients: Predictions of whole patients, None where these are unknown.
        by_patient: The same scores over patients; empty where there are none, or each has one image.
    """

    cases: Cases
    probabilities: NDArray[np.float64]
    by_image: Mapping[str, Estimate]
    patients: Patients | None
    by_patient: Mapping[str, Estimate]

    def metrics(self) -> dict[str, float]:
        """``{split}_auc``, ``{split}_auc_low``, ``{split}_auc_high``, ``{split}_patient_auc``, ...

        Without the ends of intervals that there are none of.
        """
        groups = {"": self.by_image, "patient_": self.by_patient}
        return {
            f"{self.cases.split}_{unit}{name}{end}": value
            for unit, estimates in groups.items()
            for name, found in estimates.items()
            for end, value in (("", found.value), ("_low", found.low), ("_high", found.high))
            if not (end and math.isnan(value))
        }


def judge(trained: TrainedModel, cases: Cases) -> Judgement:
    """Score a model on the images, in float32, at its recorded threshold."""
    network, images = trained.network, trained.batches(cases.images, cases.split)
    probabilities = softmax(predict_logits(network.model, network.spec, images, device=network.device))
    by_image = estimate(cases.labels, probabilities, cases.patients, trained.threshold)
    patients = by_patient(cases.labels, probabilities, cases.patients)
    if patients is None or len(patients.labels) in (0, len(cases.labels)):
        return Judgement(cases, probabilities, by_image, patients, {})
    alone = [*range(len(patients.labels))]
    per_patient = estimate(patients.labels, patients.probabilities, alone, trained.threshold)
    return Judgement(cases, probabilities, by_image, patients, per_patient)


def write_judgement(judgement: Judgement, trained: TrainedModel, folder: Path) -> tuple[Path, list[Path]]:
    """Write ``predictions/{split}.csv`` and ``plots/*.png``; return their paths."""
    cases = judgement.cases
    table = folder / "predictions" / f"{cases.split}.csv"
    write_predictions(
        table,
        samples=cases.samples,
        patients=cases.patients,
        labels=cases.labels,
        probabilities=judgement.probabilities,
        classes=trained.classes,
    )
    pictures = save_score_plots(
        folder / "plots",
        splits={cases.split: (cases.labels, judgement.probabilities)},
        classes=trained.classes,
        threshold=trained.threshold,
    )
    return table, pictures
