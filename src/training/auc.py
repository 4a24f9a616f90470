"""The area under the ROC curve: its value, its uncertainty, and what "better" means."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_CHUNK = 4_000_000  # weights held at once while resampling: 32 MB
_NOISE = 1e-28  # what rounding leaves of a variance of 0; one pair in 10 billion leaves more
_SEED = 0  # the same predictions always give the same interval


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

    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    if not one_hot.any(axis=0).all() or not np.isfinite(probabilities).all():
        return math.nan
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(one_hot[:, 1], probabilities[:, 1]))
    # The multilabel form is the macro one-vs-rest mean, and does not insist on rows that sum to 1.
    return float(roc_auc_score(one_hot, probabilities, average="macro"))


def interval(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], patients: Sequence[int | None]
) -> Interval:
    """Return the AUC with its 95 % interval.

    The variance is DeLong's (DeLong et al., Biometrics 44:837, 1988), or, where every sample's patient
    is known, that of 2,000 bootstrap draws of whole patients: several images of one patient say less
    than as many patients. The interval is made on the logit scale, which keeps its ends within 0 to 1
    and its coverage near them (Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.2).

    Both say nothing of an AUC of exactly 1 (or 0): there the far end is the exact bound below which as
    many independent pairs would all be ordered rightly in less than 2.5 % of samples.

    Args:
        labels: Class indices, (N,).
        probabilities: Class probabilities, (N, K); with K > 2 the AUC is the macro one-vs-rest mean.
        patients: Index of each sample's patient, None where unknown, N.
    """
    value = auc(labels, probabilities)
    units = number_units(patients, len(labels))
    known = None not in patients
    method = "bootstrap by patient" if known else "DeLong"
    if math.isnan(value):
        return Interval(value, math.nan, math.nan, method)
    if value in (0.0, 1.0):
        bound = 0.025 ** (1 / _independent_pairs(labels, units))
        low, high = (bound, 1.0) if value else (0.0, 1 - bound)
        return Interval(value, low, high, "exact bound")
    variance = _variance(_parts(labels, probabilities), labels, units)
    if known and not math.isnan(variance):
        variance = _bootstrap_variance(labels, probabilities, units)
    low, high = _logit_interval(value, variance)
    return Interval(value, low, high, method)


def compare(
    labels: NDArray[np.int64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    patients: Sequence[int | None],
) -> Difference:
    """Test whether two models' AUCs on the same samples differ.

    The paired test of DeLong et al. (Biometrics 44:837, 1988), computed by ranks (Sun and Xu, IEEE
    Signal Processing Letters 21:1389, 2014). Samples of one patient are one cluster (Obuchowski,
    Biometrics 53:567, 1997); with one sample per patient, or unknown ones, that is DeLong's own.

    Args:
        labels: Class indices, (N,).
        first: Class probabilities of the first model, (N, K).
        second: Class probabilities of the second model, (N, K), in the same order.
        patients: Index of each sample's patient, None where unknown, N.
    """
    from scipy.stats import norm

    value = auc(labels, first) - auc(labels, second)
    if np.array_equal(first, second) and not math.isnan(value):
        return Difference(0.0, 1.0)
    if math.isnan(value):
        return Difference(value, math.nan)
    parts = _parts(labels, first) - _parts(labels, second)
    variance = _variance(parts, labels, number_units(patients, len(labels)))
    if not variance > _NOISE:  # NaN: too few samples; 0: nothing to measure the difference by
        return Difference(value, 1.0 if value == 0 else math.nan)
    return Difference(value, float(2 * norm.sf(abs(value) / math.sqrt(variance))))


def number_units(patients: Sequence[int | None], count: int) -> NDArray[np.int64]:
    """Number the independent units: patients where all are known, else samples; (N,)."""
    if None in patients:
        return np.arange(count)
    return np.unique(np.array(patients, dtype=np.int64), return_inverse=True)[1].astype(np.int64)


def _one_vs_rest(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Yield (is positive, score) for each area that the AUC is the mean of."""
    classes = probabilities.shape[1]
    for index in [1] if classes == 2 else range(classes):
        yield labels == index, probabilities[:, index]


def _parts(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each sample adds to the AUC, (N,), summed over the pairs that it is in.

    For one area these are DeLong's structural components, V10 / positives and V01 / negatives; the
    mean of several areas adds those of each.
    """
    from scipy.stats import rankdata

    areas = list(_one_vs_rest(labels, probabilities))
    total = np.zeros(len(labels))
    for positive, scores in areas:
        pairs = int(positive.sum()) * int((~positive).sum())
        ranks = rankdata(scores)
        # Midranks count the samples below, ties as a half; those of the own side do not matter.
        total[positive] += (ranks[positive] - rankdata(scores[positive])) / pairs
        below = ranks[~positive] - rankdata(scores[~positive])
        total[~positive] += (positive.sum() - below) / pairs
    return total / len(areas)


def _variance(parts: NDArray[np.float64], labels: NDArray[np.int64], units: NDArray[np.int64]) -> float:
    """Return the variance of a sum of parts over classes of fixed size; NaN with one unit in a class.

    Obuchowski's clustered variance (1997) with one class per row; without clusters it is DeLong's.
    """
    classes = int(labels.max()) + 1
    sums, there = np.zeros((classes, int(units.max()) + 1)), np.zeros((classes, int(units.max()) + 1), bool)
    means = np.bincount(labels, weights=parts) / np.bincount(labels)
    np.add.at(sums, (labels, units), parts - means[labels])
    there[labels, units] = True
    counts = there.sum(axis=1)
    if counts.min() < 2:
        return math.nan
    scale = np.full((classes, classes), there.shape[1] / (there.shape[1] - 1))
    np.fill_diagonal(scale, counts / (counts - 1))
    return float((scale * (sums @ sums.T)).sum())


def _logit_interval(value: float, variance: float) -> tuple[float, float]:
    half = 1.959963984540054 * math.sqrt(variance) / (value * (1 - value)) if variance >= 0 else math.nan
    center = math.log(value / (1 - value))
    return _expit(center - half), _expit(center + half)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _independent_pairs(labels: NDArray[np.int64], units: NDArray[np.int64]) -> int:
    """Return how many pairs of a sample and one of another class share no unit, at the rarest class."""
    counts = []
    for label in np.unique(labels):
        own, others = set(units[labels == label].tolist()), set(units[labels != label].tolist())
        counts.append(min(len(own), len(others), len(own | others) // 2))
    return max(min(counts), 1)


def _bootstrap_variance(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], units: NDArray[np.int64]
) -> float:
    """Return the AUC's variance over draws of whole units; draws that lack a class are left out."""
    random = np.random.default_rng(_SEED)
    count = int(units.max()) + 1
    areas = list(_one_vs_rest(labels, probabilities))
    values: list[NDArray[np.float64]] = []
    at_once = max(1, _CHUNK // len(labels))
    for start in range(0, _RESAMPLES, at_once):
        draws = min(at_once, _RESAMPLES - start)
        weights = random.multinomial(count, np.full(count, 1 / count), size=draws)[:, units]
        values.append(np.mean([_weighted_auc(p, s, weights) for p, s in areas], axis=0))
    return float(np.nanvar(np.concatenate(values), ddof=1))


def _weighted_auc(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return one AUC per row of weights (B, N), each sample counted so many times; (B,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])  # the first of each tie
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * positive[order], starts, axis=1)
    negatives = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        areas: NDArray[np.float64] = wins / pairs
    return areas
