"""How good a trained model is on labelled images, and what that leaves behind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.loading import load_batches, sequential_batches
from ..evaluation.intervals import Estimate, Patients, by_patient, estimate
from ..evaluation.metrics import softmax
from ..evaluation.predictions import write_predictions
from ..evaluation.score_plots import save_score_plots
from ..models.forward import predict_logits
from ..utils.progress import track
from .cases import Cases
from .trained import TrainedModel


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
    """Runs the model over the images, in float32, and scores it at its recorded threshold."""
    batches = sequential_batches(np.arange(len(cases.labels)), trained.config.training.batch_size)
    network = trained.network
    images = track(load_batches(cases.images, batches, network.device), cases.split, len(batches))
    probabilities = softmax(predict_logits(network.model, network.spec, images, device=network.device))
    by_image = estimate(cases.labels, probabilities, cases.patients, trained.threshold)
    patients = by_patient(cases.labels, probabilities, cases.patients)
    if patients is None or len(patients.labels) in (0, len(cases.labels)):
        return Judgement(cases, probabilities, by_image, patients, {})
    alone = [*range(len(patients.labels))]
    per_patient = estimate(patients.labels, patients.probabilities, alone, trained.threshold)
    return Judgement(cases, probabilities, by_image, patients, per_patient)


def write_judgement(judgement: Judgement, trained: TrainedModel, folder: Path) -> tuple[Path, list[Path]]:
    """Writes ``predictions/{split}.csv`` and ``plots/*.png``; returns the table and the pictures."""
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
