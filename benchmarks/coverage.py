"""How often the statistics are right: intervals, the test for the best of many, the corrected AUC.

python -m benchmarks.coverage [--replicates 2000] [--json FILE]

Everything is simulated and computed by the code that promotion and evaluation use. Scores are normal, with a
known AUC, of patients with one image, or with 1 to 5 images of one label that share a level (intraclass
correlation 0.5). Two models on the same images have errors that correlate by 0.5.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri
from scipy.stats import rankdata

from benchmarks.measuring import keep, show
from src.evaluation.auc import compare, corrected_auc
from src.evaluation.intervals import FEWEST_UNITS, estimate, interval
from src.promotion.select import adjust_p

AUCS, PATIENTS, PREVALENCES = (0.6, 0.8, 0.95, 0.99), (30, 100, 500), (0.1, 0.5)
IMAGES = ("1", "1 to 5")
RUNS, LEVEL, HALF = (5, 20, 50), 0.05, math.sqrt(0.5)

Floats = NDArray[np.float64]
Measured = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Sample:
    """Labels (N,) and patients (N,) of images, and the number of patients."""

    labels: NDArray[np.int64]
    units: NDArray[np.int64]
    patients: int


def draw_sample(random: np.random.Generator, patients: int, prevalence: float, images: str) -> Sample:
    """Draw patients, positive by chance, and their images."""
    sizes = np.ones(patients, int) if images == IMAGES[0] else random.integers(1, 6, patients)
    units = np.repeat(np.arange(patients), sizes)
    labels = (random.random(patients) < prevalence)[units]
    return Sample(labels.astype(np.int64), units, patients)


def draw_noise(random: np.random.Generator, sample: Sample, models: int) -> Floats:
    """Draw standard normal scores, (models, N), that are alike within a patient."""
    level = random.normal(0, HALF, (models, sample.patients))[:, sample.units]
    return level + random.normal(0, HALF, (models, len(sample.units)))


def draw_models(random: np.random.Generator, sample: Sample, aucs: Floats) -> Floats:
    """Draw scores of models with these true AUCs, (models, N)."""
    shared = draw_noise(random, sample, 1)
    own = draw_noise(random, sample, len(aucs))
    shift = math.sqrt(2) * ndtri(aucs)
    drawn: Floats = HALF * (shared + own) + shift[:, None] * sample.labels
    return drawn


def both(scores: Floats) -> Floats:
    """Return scores as probabilities of two classes."""
    return np.column_stack([expit(-scores), expit(scores)])


def best_of(labels: NDArray[np.int64], models: Floats) -> tuple[int, float]:
    """Return the row of the best model and its AUC."""
    positives = int(labels.sum())
    ranks = rankdata(models, axis=1)[:, labels == 1].sum(axis=1)
    aucs = (ranks - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))
    return int(aucs.argmax()), float(aucs.max())


def coverage(auc: float, patients: int, prevalence: float, images: str, replicates: int) -> dict[str, float]:
    """Return how often the interval of an AUC holds the true one, is below, above, or refused."""
    random = np.random.default_rng([patients, int(100 * auc), int(10 * prevalence), IMAGES.index(images)])
    ends = np.empty((replicates, 2))
    for row in range(replicates):
        sample = draw_sample(random, patients, prevalence, images)
        scores = draw_noise(random, sample, 1)[0] + math.sqrt(2) * ndtri(auc) * sample.labels
        found = interval(sample.labels, both(scores), sample.units.tolist())
        ends[row] = found.low, found.high
    given = ends[np.isfinite(ends[:, 0])]
    below, above = float((given[:, 1] < auc).mean()), float((given[:, 0] > auc).mean())
    held = 1 - below - above
    return {
        "coverage": held,
        "error": math.sqrt(held * (1 - held) / len(given)),
        "below": below,
        "above": above,
        "width": float((given[:, 1] - given[:, 0]).mean()),
        "refused": 1 - len(given) / replicates,
    }


def covers(replicates: int) -> Measured:
    """Measure the intervals of all cells in which the rarer class has enough patients on average."""
    return {
        f"{images} image(s), {patients} patients, prevalence {prevalence}, AUC {auc}": coverage(
            auc, patients, prevalence, images, replicates
        )
        for images, patients, prevalence, auc in product(IMAGES, PATIENTS, PREVALENCES, AUCS)
        if patients * prevalence >= FEWEST_UNITS
    }


def three_classes(replicates: int) -> Measured:
    """Measure the intervals of macro averages: three classes, 1 to 5 images of 60 patients."""
    random = np.random.default_rng(3)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(replicates):
        sizes = random.integers(1, 6, 60)
        units = np.repeat(np.arange(60), sizes)
        labels = np.repeat(np.arange(60) % 3, sizes).astype(np.int64)
        levels = random.normal(0, HALF, (60, 3))[units] + random.normal(0, HALF, (len(units), 3))
        scores = np.exp(levels + 2 * np.eye(3)[labels])
        given = estimate(labels, scores / scores.sum(axis=1, keepdims=True), units.tolist(), 0.5)
        for name, one in given.items():
            found.setdefault(name, []).append((one.value, one.low, one.high))
    measured: Measured = {}
    for name, rows in found.items():
        values, lows, highs = np.array(rows).T
        held = float(((lows <= values.mean()) & (values.mean() <= highs)).mean())
        measured[f"three classes, {name}"] = {"coverage": held, "width": float((highs - lows).mean())}
    return measured


def promoted(runs: int, gain: float, patients: int, images: str, replicates: int) -> dict[str, float]:
    """Return how often the best of some runs, each better by the gain, passes ``--significant 0.05``."""
    random = np.random.default_rng([runs, int(100 * gain), patients, IMAGES.index(images)])
    raw = corrected = 0
    for _ in range(replicates):
        sample = draw_sample(random, patients, 0.3, images)
        models = draw_models(random, sample, np.array([0.8] + [0.8 + gain] * runs))
        best, _ = best_of(sample.labels, models[1:])
        found = compare(sample.labels, both(models[1 + best]), both(models[0]), sample.units.tolist())
        raw += found.value > 0 and found.p < LEVEL
        corrected += found.value > 0 and adjust_p(found.p, runs) < LEVEL
    return {"p": raw / replicates, "min(1, m x p)": corrected / replicates}


def bias(runs: int, spread: float, patients: int, replicates: int) -> dict[str, float]:
    """Return by how much the AUC of the best of some runs, and the corrected one, is too high on average."""
    random = np.random.default_rng([runs, int(100 * spread), patients])
    errors = np.empty((replicates, 2))
    for row in range(replicates):
        sample = draw_sample(random, patients, 0.3, IMAGES[0])
        true = np.clip(random.normal(0.8, spread, runs), 0.5, 0.99)
        models = draw_models(random, sample, true)
        best, naive = best_of(sample.labels, models)
        corrected = corrected_auc(sample.labels, [both(one) for one in models], sample.units.tolist())
        errors[row] = naive - true[best], corrected - true[best]
    mean, error = errors.mean(axis=0), errors.std(axis=0) / math.sqrt(replicates)
    return {"naive": float(mean[0]), "corrected": float(mean[1]), "error": float(error[1])}


def measure(replicates: int) -> Iterator[tuple[str, Measured]]:
    """Measure one table after another; what takes longer has fewer replicates."""
    fewer = max(replicates // 10, 1)
    yield "95 % intervals of the AUC", covers(replicates)
    yield (
        "bias of the best AUC; true AUCs of 0.8 with this deviation",
        {
            f"best of {m}, 100 patients, deviation {spread}": bias(m, spread, 100, fewer)
            for m, spread in product(RUNS, (0.0, 0.03))
        },
    )
    yield (
        "promoted though no better than the champion (AUC 0.8)",
        {
            f"best of {m}, 100 patients, {images} image(s)": promoted(m, 0.0, 100, images, replicates)
            for m, images in product(RUNS, IMAGES)
        },
    )
    yield (
        "promoted with a true gain over a champion of AUC 0.8",
        {
            f"gain {gain}, best of {m}, {n} patients, 1 image(s)": promoted(m, gain, n, IMAGES[0], fewer)
            for gain, m, n in product((0.05, 0.1), (1, 20), (100, 300, 1000))
        },
    )
    yield "95 % intervals of macro averages", three_classes(fewer)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Measured] = {}
    for title, rows in measure(args.replicates):
        found[title] = rows
        names = list(next(iter(rows.values())))
        show([title, *names], [[what, *(f"{of[name]:.3f}" for name in names)] for what, of in rows.items()])
    keep(args.json, found)


if __name__ == "__main__":
    main()
