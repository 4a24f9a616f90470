"""Scores with their 95 % confidence intervals, by image and by patient."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .auc import (
    ROUNDING_NOISE,
    Floats,
    Ints,
    PatientIds,
    auc,
    cluster_sums,
    clustered_variance,
    components,
    is_defined,
    number_units,
    positives_of,
)
from .metrics import decide

Z = 1.959963984540054
"""Quantile of the normal distribution for 95 % intervals."""
FEWEST_UNITS = 5
"""Patients (images, if patients are unknown) that each class needs for an interval of the AUC."""
_EDGE = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A score from 0 to 1 with its 95 % interval, whose ends are NaN if it cannot be estimated.

    Attributes:
        value: The score.
        low: Lower end of the interval.
        high: Upper end of the interval.
        note: Name of the method, or why there is no interval; for display.
    """

    value: float
    low: float
    high: float
    note: str = "no interval"


def interval(labels: Ints, probabilities: Floats, patients: PatientIds) -> Estimate:
    """Return the AUC with its 95 % interval.

    Two classes: method 5 of Newcombe (Statistics in Medicine 25:559, 2006, doi 10.1002/sim.2324), which
    solves for the areas whose own standard error explains the observed one. Its ends stay within 0 to 1,
    it is defined at an AUC of exactly 0 or 1, and at fixed counts both ends never decrease with the AUC. If
    patients have several images, the variance is multiplied by the design effect: Obuchowski's clustered
    variance (Biometrics 53:567, 1997) over DeLong's (Biometrics 44:837, 1988), at least 1, and the normal
    quantile becomes that of t with the rarer class's patients - 1 degrees of freedom. If either variance
    is 0, the design effect is the largest number of images of one patient.

    More classes: the intervals of the one-vs-rest areas, combined as `combine` does.

    Both ends are NaN if the AUC is undefined, or if a class has fewer than `FEWEST_UNITS` patients; ``note``
    then has the reason.
    """
    if not is_defined(labels, probabilities):
        return Estimate(math.nan, math.nan, math.nan, "the AUC is undefined")
    units, parts = number_units(patients, len(labels)), components(labels, probabilities)
    sides = [labels == index for index in positives_of(probabilities.shape[1])]
    values = [min(float(own[side].sum()), 1.0) for side, own in zip(sides, parts, strict=True)]
    value = float(np.mean(values))
    if (few := _too_few(labels, units, probabilities.shape[1])) is not None:
        return Estimate(value, math.nan, math.nan, f"too few {few} for an interval")
    areas = [
        (area, *newcombe(area, int(side.sum()), int((~side).sum()), _design_effect(own, side, units)))
        for area, side, own in zip(values, sides, parts, strict=True)
    ]
    influence = np.stack([cluster_sums(own, labels, units).sum(axis=0) for own in parts])
    low, high = combine(areas, influence, np.ones_like(influence, dtype=bool))
    is_clustered = units.max() + 1 < len(units)
    return Estimate(value, low, high, "Newcombe, by patient" if is_clustered else "Newcombe")


def combine(
    estimates: Sequence[tuple[float, float, float]], influence: Floats, involved: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the 95 % interval of a mean of rates from the interval of each rate.

    The distances from each rate to its ends are added like the standard errors of correlated estimates
    (Zou and Donner, Statistics in Medicine 27:1693, 2008), so the ends stay within 0 to 1. Negative
    correlations count as 0. A rate without variance has no correlation: it counts as 1 with the rates
    that share a patient with it, else as 0.

    Args:
        estimates: Value, lower and upper end of each of R rates.
        influence: Contribution of each of U independent units to each rate's deviation, (R, U).
        involved: Whether a unit has samples in the denominator of a rate, (R, U).
    """
    values, lows, highs = np.array(estimates, dtype=np.float64).T
    covariance = influence @ influence.T
    spread = np.sqrt(np.diag(covariance))
    varies = spread > math.sqrt(ROUNDING_NOISE)
    share_units = involved.astype(np.float64) @ involved.T.astype(np.float64) > 0
    scale = np.where(varies, spread, 1.0)
    both = varies[:, None] & varies[None, :]
    correlation = np.where(both, np.clip(covariance / np.outer(scale, scale), 0, 1), share_units)
    np.fill_diagonal(correlation, 1.0)
    down, up = values - lows, highs - values
    half_down, half_up = (math.sqrt(side @ correlation @ side) / len(values) for side in (down, up))
    mean = float(values.mean())
    return max(mean - half_down, 0.0), min(mean + half_up, 1.0)


def newcombe(area: float, positives: int, negatives: int, design_effect: float = 1.0) -> tuple[float, float]:
    """Return the 95 % interval of one area by method 5 of Newcombe (2006).

    Args:
        area: The area, 0 to 1.
        positives: Number of positive samples.
        negatives: Number of negative samples.
        design_effect: Factor of the variance, at least 1.
    """
    from scipy.optimize import brentq

    others = (positives + negatives) / 2 - 1
    scale = Z**2 * design_effect / (positives * negatives)

    def excess(theta: float) -> float:
        """Return the squared distance to the observed area minus that of an end of the interval."""
        variance = theta * (1 - theta) * (1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return float((area - theta) ** 2 - scale * variance)

    # The variance is 0 at 0 and 1, where the equation has solutions that are not ends of the interval.
    low = 0.0 if area <= 0 else float(brentq(excess, 0.0, min(area, 1 - _EDGE)))
    high = 1.0 if area >= 1 else float(brentq(excess, max(area, _EDGE), 1.0))
    return low, high


def _design_effect(parts: Floats, positive: NDArray[np.bool_], units: Ints) -> float:
    """Return the factor by which several images per patient raise the variance of an area, at least 1."""
    sizes, sides = np.bincount(units), positive.astype(np.int64)
    if len(sizes) == len(units):
        return 1.0
    clustered = clustered_variance(parts, sides, units)
    alone = clustered_variance(parts, sides, np.arange(len(units)))
    if not (clustered > ROUNDING_NOISE and alone > ROUNDING_NOISE):
        return float(sizes.max())
    fewest = min(len(np.unique(units[side])) for side in (positive, ~positive))
    return max(clustered / alone, 1.0) * widening(fewest)


def widening(units: int) -> float:
    """Return the factor that corrects a variance estimated from few units: t squared over Z squared."""
    from scipy.special import stdtrit

    return float((stdtrit(units - 1, 0.975) / Z) ** 2)


def _too_few(labels: Ints, units: Ints, classes: int) -> str | None:
    """Return which samples are too few for an interval; None if there are enough."""
    counts = [len(np.unique(units[labels == index])) for index in range(classes)]
    if min(counts) >= FEWEST_UNITS:
        return None
    if classes > 2:
        return "of a class"
    return "negatives" if counts[0] < counts[1] else "positives"


@dataclass(frozen=True)
class Patients:
    """One prediction per patient.

    Attributes:
        labels: Class index of each patient, (P,).
        probabilities: Mean over the patient's images, (P, K).
        left_out: Number of patients whose images are of several classes.
    """

    labels: Ints
    probabilities: Floats
    left_out: int


def estimate(
    labels: Ints, probabilities: Floats, patients: PatientIds, threshold: float
) -> Mapping[str, Estimate]:
    """Return ``auc``, ``acc``, ``sensitivity`` and ``specificity``, each with its interval.

    The AUC has the interval of `interval`. Proportions have Wilson's (JASA 22:209, 1927); if patients are
    known, with the effective sample size of Rao and Scott (Biometrics 48:577, 1992), because several images
    of one patient are worth less than images of as many patients. With more than two classes, sensitivity
    and specificity are macro averages, and `combine` makes their intervals from those of the classes; the
    threshold is for two classes only.
    """
    units = number_units(patients, len(labels))
    decisions = decide(probabilities, threshold)
    area = interval(labels, probabilities, patients)
    found = {
        "auc": Estimate(auc(labels, probabilities), area.low, area.high, area.note),
        "acc": proportion(decisions == labels, units),
    }
    if probabilities.shape[1] > 2:
        classes = range(probabilities.shape[1])
        found["sensitivity"] = _mean([(labels == k, decisions == k) for k in classes], units)
        found["specificity"] = _mean([(labels != k, decisions != k) for k in classes], units)
        return found
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        of_class = labels == label
        found[name] = proportion(decisions[of_class] == label, units[of_class])
    return found


def proportion(hits: NDArray[np.bool_], units: Ints) -> Estimate:
    """Return the proportion of hits (N,), with Wilson's interval for the effective sample size.

    ``units`` (N,) are the independent units of the samples; all different for independent samples.
    """
    count = len(hits)
    if not count:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(hits.mean())
    effective = _effective_size(hits, units, value)
    center = (value + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = math.sqrt(value * (1 - value) / effective + (Z / (2 * effective)) ** 2)
    half *= Z / (1 + Z**2 / effective)
    return Estimate(value, max(center - half, 0.0), min(center + half, 1.0))


def _effective_size(hits: NDArray[np.bool_], units: Ints, value: float) -> float:
    """Return the number of independent samples with the same information, at most the number of samples.

    If the variance between units cannot be estimated (fewer than two units, hits only or misses only), it
    is the number of samples divided by the size of the largest unit.
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


def _mean(rates: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]], units: Ints) -> Estimate:
    """Return the mean of several rates, each given by its denominator and its hits."""
    proportions = [proportion(hits[about], units[about]) for about, hits in rates]
    value = float(np.mean([found.value for found in proportions]))
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    influence = np.zeros((len(rates), int(units.max()) + 1))
    involved = np.zeros(influence.shape, dtype=bool)
    for row, ((about, hits), found) in enumerate(zip(rates, proportions, strict=True)):
        np.add.at(influence[row], units[about], (hits[about] - found.value) / about.sum())
        involved[row, units[about]] = True
    parts = [(one.value, one.low, one.high) for one in proportions]
    return Estimate(value, *combine(parts, influence, involved))


def by_patient(labels: Ints, probabilities: Floats, patients: PatientIds) -> Patients | None:
    """Return one prediction per patient, the mean over its images; None if patients are unknown."""
    if None in patients:
        return None
    numbers, own = np.unique(np.array(patients, dtype=np.int64), return_inverse=True)
    sizes = np.bincount(own)
    means = np.stack([np.bincount(own, weights=column) / sizes for column in probabilities.T], axis=1)
    first = labels[np.unique(own, return_index=True)[1]]
    is_mixed = np.zeros(len(numbers), bool)
    is_mixed[own[labels != first[own]]] = True
    return Patients(first[~is_mixed], means[~is_mixed], int(is_mixed.sum()))
