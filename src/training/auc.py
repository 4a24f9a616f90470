"""The area under the ROC curve: its value, its uncertainty, and what "better" means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Quantile of the normal distribution for 95 % intervals."""
FEWEST_UNITS = 5
"""Patients (or images, where patients are unknown) that each class needs for an interval of the AUC."""
_EDGE = 1e-12
_NOISE = 1e-28  # what rounding leaves of a variance of 0; one pair in 10 billion leaves more


@dataclass(frozen=True)
class Interval:
    """An AUC with its 95 % confidence interval; both ends are NaN where it cannot be estimated.

    Attributes:
        auc: The area, 0 to 1.
        low: Lower end.
        high: Upper end.
        method: How the interval was made, for people.
    """

    auc: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two models on the same samples.

    Attributes:
        value: AUC of the first minus AUC of the second.
        p: Two-sided p value of the hypothesis that both are equal, NaN where it cannot be tested.
    """

    value: float
    p: float


def is_better(candidate: float, incumbent: float | None) -> bool:
    """Say whether a score replaces the best so far: the one rule for best epochs and promotion.

    Args:
        candidate: The new score; larger is better.
        incumbent: The best so far, or None where there is none.

    Returns:
        True where ``candidate`` is finite and strictly greater. NaN and infinity never win, and an
        incumbent that is none of the finite numbers is no record: any finite candidate beats it.
    """
    if not math.isfinite(candidate):
        return False
    return incumbent is None or not math.isfinite(incumbent) or candidate > incumbent


def auc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve, as scikit-learn computes it.

    Args:
        labels: Class indices, (N,).
        probabilities: Class probabilities, (N, K). With K = 2 class 1 is the positive one; with more
            classes the result is the unweighted mean of the one-vs-rest areas.

    Returns:
        The area, or NaN where it is undefined: a class without samples, or a probability that is not
        finite.
    """
    from sklearn.metrics import roc_auc_score

    if not _is_defined(labels, probabilities):
        return math.nan
    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(one_hot[:, 1], probabilities[:, 1]))
    # The multilabel form is the macro one-vs-rest mean, and does not insist on rows that sum to 1.
    return float(roc_auc_score(one_hot, probabilities, average="macro"))


def interval(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], patients: Sequence[int | None]
) -> Interval:
    """Return the AUC with its 95 % interval.

    Two classes: method 5 of Newcombe (Statistics in Medicine 25:559, 2006, doi 10.1002/sim.2324), which
    solves for the areas whose own standard error explains the observed one. Its ends stay within 0 to 1,
    it is defined at an AUC of exactly 0 or 1, and at fixed counts a larger AUC never has a lower end. Where
    patients have several images, the variance is multiplied by the design effect: Obuchowski's clustered
    variance (Biometrics 53:567, 1997) over DeLong's (Biometrics 44:837, 1988), at least 1, and the normal
    quantile becomes that of t with the rarer class's patients - 1 degrees of freedom. Where either variance
    is 0, the design effect is the number of images of the patient with the most images.

    More classes: the intervals of the one-vs-rest areas, combined as `combine` does.

    Args:
        labels: Class indices, (N,).
        probabilities: Class probabilities, (N, K); with K > 2 the AUC is the macro one-vs-rest mean.
        patients: Index of each sample's patient, None where unknown, N.

    Returns:
        The AUC and its interval. Both ends are NaN where the AUC is undefined, or where a class has fewer
        than `FEWEST_UNITS` patients; ``method`` then says so.
    """
    if not _is_defined(labels, probabilities):
        return Interval(math.nan, math.nan, math.nan, "the AUC is undefined")
    units, parts = number_units(patients, len(labels)), _parts(labels, probabilities)
    sides = [labels == index for index in positives_of(probabilities.shape[1])]
    values = [min(float(own[side].sum()), 1.0) for side, own in zip(sides, parts, strict=True)]
    value = float(np.mean(values))
    if (few := _too_few(labels, units, probabilities.shape[1])) is not None:
        return Interval(value, math.nan, math.nan, f"too few {few} for an interval")
    areas = [
        (area, *newcombe(area, int(side.sum()), int((~side).sum()), _design_effect(own, side, units)))
        for area, side, own in zip(values, sides, parts, strict=True)
    ]
    influence = np.stack([_sums(own, labels, units).sum(axis=0) for own in parts])
    low, high = combine(areas, influence, np.ones_like(influence, dtype=bool))
    is_clustered = units.max() + 1 < len(units)
    return Interval(value, low, high, "Newcombe, by patient" if is_clustered else "Newcombe")


def combine(
    estimates: Sequence[tuple[float, float, float]],
    influence: NDArray[np.float64],
    involved: NDArray[np.bool_],
) -> tuple[float, float]:
    """Return the 95 % interval of a mean of rates, made from the interval of each.

    The distances from each rate to its ends are added as the standard errors of correlated estimates
    are (Zou and Donner, Statistics in Medicine 27:1693, 2008), so the ends stay within 0 to 1. Negative
    correlations count as 0. A rate that does not vary has no correlation: it counts as 1 with the rates
    that share a patient with it, else as 0.

    Args:
        estimates: Value, lower and upper end of each of R rates.
        influence: What each of U independent units adds to each rate's deviation, (R, U).
        involved: Whether a unit has samples that a rate is about, (R, U).
    """
    values, lows, highs = np.array(estimates, dtype=np.float64).T
    covariance = influence @ influence.T
    spread = np.sqrt(np.diag(covariance))
    varies = spread > math.sqrt(_NOISE)
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
        """Squared distance to the observed area, less that of an end."""
        variance = theta * (1 - theta) * (1 + others * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return float((area - theta) ** 2 - scale * variance)

    # The variance is 0 at 0 and 1, which solves the equation there and is not the end that is looked for.
    low = 0.0 if area <= 0 else float(brentq(excess, 0.0, min(area, 1 - _EDGE)))
    high = 1.0 if area >= 1 else float(brentq(excess, max(area, _EDGE), 1.0))
    return low, high


def compare(
    labels: NDArray[np.int64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    patients: Sequence[int | None],
) -> Difference:
    """Test whether two models' AUCs on the same samples differ.

    The paired statistic of DeLong et al. (Biometrics 44:837, 1988), computed by ranks (Sun and Xu, IEEE
    Signal Processing Letters 21:1389, 2014). Samples of one patient are one cluster (Obuchowski,
    Biometrics 53:567, 1997); with one sample per patient, or unknown ones, that is DeLong's own. It is
    referred to Student's t with (patients - 1) degrees of freedom, which keeps the level with few
    patients; where these are unknown, samples count as patients.

    Args:
        labels: Class indices, (N,).
        first: Class probabilities of the first model, (N, K).
        second: Class probabilities of the second model, (N, K), in the same order.
        patients: Index of each sample's patient, None where unknown, N.
    """
    from scipy.stats import t

    value = auc(labels, first) - auc(labels, second)
    if np.array_equal(first, second) and not math.isnan(value):
        return Difference(0.0, 1.0)
    if math.isnan(value):
        return Difference(value, math.nan)
    parts, units = (
        (_parts(labels, first) - _parts(labels, second)).mean(axis=0),
        number_units(patients, len(labels)),
    )
    variance = _variance(parts, labels, units)
    if not variance > _NOISE:  # NaN: too few samples; 0: nothing to measure the difference by
        return Difference(value, 1.0 if value == 0 else math.nan)
    return Difference(value, float(2 * t.sf(abs(value) / math.sqrt(variance), units.max())))


def number_units(patients: Sequence[int | None], count: int) -> NDArray[np.int64]:
    """Number the independent units: patients where all are known, else samples; (N,)."""
    if None in patients:
        return np.arange(count)
    return np.unique(np.array(patients, dtype=np.int64), return_inverse=True)[1].astype(np.int64)


def _is_defined(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> bool:
    """Return whether every class has samples and every probability is finite."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    return bool(counts.all() and np.isfinite(probabilities).all())


def positives_of(classes: int) -> Sequence[int]:
    """Return the positive class of each area that the AUC is the mean of."""
    return [1] if classes == 2 else range(classes)


def _parts(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each sample adds to each area, (areas, N), summed over the pairs that it is in.

    These are DeLong's structural components, V10 / positives and V01 / negatives.
    """
    from scipy.stats import rankdata

    found = []
    for index in positives_of(probabilities.shape[1]):
        positive, scores = labels == index, probabilities[:, index]
        pairs = int(positive.sum()) * int((~positive).sum())
        ranks, own = rankdata(scores), np.empty(len(labels))
        # Midranks count the samples below, ties as a half; those of the own side do not matter.
        own[positive] = (ranks[positive] - rankdata(scores[positive])) / pairs
        below = ranks[~positive] - rankdata(scores[~positive])
        own[~positive] = (positive.sum() - below) / pairs
        found.append(own)
    return np.stack(found)


def _sums(
    parts: NDArray[np.float64], labels: NDArray[np.int64], units: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return each unit's sum of the parts' deviations from the mean of their class, (classes, units)."""
    sums = np.zeros((int(labels.max()) + 1, int(units.max()) + 1))
    means = np.bincount(labels, weights=parts) / np.bincount(labels)
    np.add.at(sums, (labels, units), parts - means[labels])
    return sums


def _variance(parts: NDArray[np.float64], labels: NDArray[np.int64], units: NDArray[np.int64]) -> float:
    """Return the variance of a sum of parts over classes of fixed size; NaN with one unit in a class.

    Obuchowski's clustered variance (1997) with one class per row; without clusters it is DeLong's.
    """
    sums = _sums(parts, labels, units)
    there = np.zeros_like(sums, dtype=bool)
    there[labels, units] = True
    counts = there.sum(axis=1)
    if counts.min() < 2:
        return math.nan
    scale = np.full((len(sums), len(sums)), there.shape[1] / (there.shape[1] - 1))
    np.fill_diagonal(scale, counts / (counts - 1))
    return float((scale * (sums @ sums.T)).sum())


def _design_effect(
    parts: NDArray[np.float64], positive: NDArray[np.bool_], units: NDArray[np.int64]
) -> float:
    """Return the factor by which images of the same patient raise the variance of an area, at least 1."""
    sizes, sides = np.bincount(units), positive.astype(np.int64)
    if len(sizes) == len(units):
        return 1.0
    clustered, alone = _variance(parts, sides, units), _variance(parts, sides, np.arange(len(units)))
    if not (clustered > _NOISE and alone > _NOISE):
        return float(sizes.max())
    fewest = min(len(np.unique(units[side])) for side in (positive, ~positive))
    return max(clustered / alone, 1.0) * widening(fewest)


def widening(units: int) -> float:
    """Return the factor of a variance that was estimated from a few units: t squared over Z squared."""
    from scipy.special import stdtrit

    return float((stdtrit(units - 1, 0.975) / Z) ** 2)


def _too_few(labels: NDArray[np.int64], units: NDArray[np.int64], classes: int) -> str | None:
    """Return what there is too little of for an interval; None where there is enough."""
    counts = [len(np.unique(units[labels == index])) for index in range(classes)]
    if min(counts) >= FEWEST_UNITS:
        return None
    if classes > 2:
        return "of a class"
    return "negatives" if counts[0] < counts[1] else "positives"
