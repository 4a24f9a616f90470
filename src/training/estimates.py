"""Scores with their 95 % intervals, by image and by patient."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .auc import Z, auc, combine, interval, number_units, widening
from .metrics import decide

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A score from 0 to 1 with its 95 % interval, NaN where it cannot be estimated; ``note`` says why."""

    value: float
    low: float
    high: float
    note: str = "no interval"


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
    sensitivity and specificity are macro averages, whose intervals are made of each class's by
    `src.training.auc.combine`.

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
        "auc": Estimate(auc(labels, probabilities), area.low, area.high, area.method),
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
    centre = (value + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = math.sqrt(value * (1 - value) / effective + (Z / (2 * effective)) ** 2)
    half *= Z / (1 + Z**2 / effective)
    return Estimate(value, max(centre - half, 0.0), min(centre + half, 1.0))


def _effective(hits: NDArray[np.bool_], units: NDArray[np.int64], value: float) -> float:
    """How many independent samples say as much; never more than there are.

    Where the variance between units cannot be had, as if the largest unit's samples were one: with fewer
    than two units, or with hits or misses only.
    """
    _, own = np.unique(units, return_inverse=True)
    sizes = np.bincount(own)
    groups, count = len(sizes), len(hits)
    if groups == count:
        return float(count)
    if groups < 2 or value in (0.0, 1.0):
        return count / float(sizes.max())
    residuals = np.bincount(own, weights=hits) - value * sizes
    variance = groups / (groups - 1) * float((residuals**2).sum()) / count**2
    design_effect = variance / (value * (1 - value) / count)
    return count / (max(design_effect, 1.0) * widening(groups))


def _macro_rates(
    labels: Labels, decisions: Labels, units: NDArray[np.int64], classes: int
) -> dict[str, Estimate]:
    return {
        "sensitivity": _mean([(labels == k, decisions == k) for k in range(classes)], units),
        "specificity": _mean([(labels != k, decisions != k) for k in range(classes)], units),
    }


def _mean(rates: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]], units: NDArray[np.int64]) -> Estimate:
    """The mean of several rates, given which samples each is about and which are hits."""
    shares = [share(hits[about], units[about]) for about, hits in rates]
    value = float(np.mean([found.value for found in shares]))
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    influence = np.zeros((len(rates), int(units.max()) + 1))
    involved = np.zeros(influence.shape, dtype=bool)
    for row, ((about, hits), found) in enumerate(zip(rates, shares, strict=True)):
        np.add.at(influence[row], units[about], (hits[about] - found.value) / about.sum())
        involved[row, units[about]] = True
    return Estimate(value, *combine([(one.value, one.low, one.high) for one in shares], influence, involved))


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
