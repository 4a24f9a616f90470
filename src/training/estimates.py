"""Scores with their 95 % intervals, by image and by patient."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.training.auc import interval, number_units
from src.training.metrics import class_rates, confusion, decide

_Z = 1.959963984540054
_DRAWS = 2000
_SEED = 0  # the same predictions always give the same interval

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A score from 0 to 1 with its 95 % interval, NaN where it cannot be estimated."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Patients:
    """Predictions of whole patients.

    Attributes:
        labels: Class index of each, (P,).
        probabilities: Mean over the patient's images, (P, K).
        left_out: Patients whose images are of several classes.
    """

    labels: Labels
    probabilities: Floats
    left_out: int


def estimate(
    labels: Labels, probabilities: Floats, patients: Sequence[int | None], threshold: float
) -> Mapping[str, Estimate]:
    """Returns ``auc``, ``acc``, ``sensitivity`` and ``specificity``, each with its interval.

    The AUC's interval is that of `src.training.auc.interval`. Shares have Wilson's (JASA 22:209, 1927);
    where patients are known, with the effective number of samples of Rao and Scott (Biometrics 48:577,
    1992), for several images of one patient say less than as many patients. With more than two classes
    sensitivity and specificity are macro averages, whose intervals are percentiles of 2,000 bootstrap
    draws of whole patients (of images where they are unknown).

    Args:
        labels: Class indices, (N,).
        probabilities: Class probabilities, (N, K).
        patients: Index of each sample's patient, None where unknown, N.
        threshold: The operating threshold of two classes.
    """
    units = number_units(patients, len(labels))
    decisions = decide(probabilities, threshold)
    area = interval(labels, probabilities, patients)
    found = {
        "auc": Estimate(area.auc, area.low, area.high),
        "acc": share(decisions == labels, units),
    }
    if probabilities.shape[1] > 2:
        return found | _macro_rates(labels, decisions, units, probabilities.shape[1])
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        of_class = labels == label
        found[name] = share(decisions[of_class] == label, units[of_class])
    return found


def share(hits: NDArray[np.bool_], units: NDArray[np.int64]) -> Estimate:
    """The share of hits, with Wilson's interval for the effective number of samples.

    Args:
        hits: Whether each sample is one, (N,).
        units: Which samples belong together, (N,); all different for independent ones.
    """
    count = len(hits)
    if not count:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(hits.mean())
    effective = _effective(hits, units, value)
    centre = (value + _Z**2 / (2 * effective)) / (1 + _Z**2 / effective)
    half = math.sqrt(value * (1 - value) / effective + (_Z / (2 * effective)) ** 2)
    half *= _Z / (1 + _Z**2 / effective)
    return Estimate(value, max(centre - half, 0.0), min(centre + half, 1.0))


def _effective(hits: NDArray[np.bool_], units: NDArray[np.int64], value: float) -> float:
    """How many independent samples say as much; never more than there are."""
    _, own = np.unique(units, return_inverse=True)
    sizes = np.bincount(own)
    groups, count = len(sizes), len(hits)
    if groups == count or groups < 2:
        return float(groups)
    if value in (0.0, 1.0):  # nothing to see how alike the samples of a unit are
        return float(groups)
    residuals = np.bincount(own, weights=hits) - value * sizes
    variance = groups / (groups - 1) * float((residuals**2).sum()) / count**2
    design_effect = variance / (value * (1 - value) / count)
    return count / max(design_effect, 1.0)


def _macro_rates(
    labels: Labels, decisions: Labels, units: NDArray[np.int64], classes: int
) -> dict[str, Estimate]:
    random = np.random.default_rng(_SEED)
    cells = np.zeros((int(units.max()) + 1, classes * classes))
    np.add.at(cells, (units, labels * classes + decisions), 1)
    draws = random.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=_DRAWS) @ cells
    tables = draws.reshape(-1, classes, classes)
    rates = np.array([[rate.mean() for rate in class_rates(table)] for table in tables.astype(np.int64)])
    values = [float(rate.mean()) for rate in class_rates(confusion(labels, decisions, classes))]
    low, high = np.nanpercentile(rates, [2.5, 97.5], axis=0)
    return {
        name: Estimate(values[i], float(low[i]), float(high[i]))
        for i, name in enumerate(("sensitivity", "specificity"))
    }


def by_patient(labels: Labels, probabilities: Floats, patients: Sequence[int | None]) -> Patients | None:
    """One prediction per patient: the mean over its images; None where patients are unknown.

    Args:
        labels: Class indices, (N,).
        probabilities: Class probabilities, (N, K).
        patients: Index of each sample's patient, N.
    """
    if None in patients:
        return None
    numbers, own = np.unique(np.array(patients, dtype=np.int64), return_inverse=True)
    sizes = np.bincount(own)
    means = np.stack([np.bincount(own, weights=column) / sizes for column in probabilities.T], axis=1)
    first = labels[np.unique(own, return_index=True)[1]]
    is_mixed = np.zeros(len(numbers), bool)
    is_mixed[own[labels != first[own]]] = True
    return Patients(first[~is_mixed], means[~is_mixed], int(is_mixed.sum()))
