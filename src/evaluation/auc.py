"""The area under the ROC curve (AUC): value, paired comparison and correction for selection.

In this package, ``labels`` are class indices (N,), ``probabilities`` are class probabilities (N, K), and
``patients`` are the indices of the samples' patients, None if unknown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING_NOISE = 1e-28
"""Upper limit of the variance that rounding errors cause if the true one is 0."""
DRAWS = 100
"""Bootstrap draws of `corrected_auc`; fewer draws have the same mean and a larger variance."""
_SEED = 0  # the same predictions always give the same correction

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PatientIds = Sequence[int | None]
"""Index of each sample's patient, None if unknown."""


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two models on the same samples.

    Attributes:
        value: AUC of the first minus AUC of the second.
        p: Two-sided p value of the hypothesis that both are equal, NaN if it cannot be tested.
    """

    value: float
    p: float


def is_better(candidate: float, best: float | None) -> bool:
    """Return whether a score replaces the best so far: the one rule for best epochs and promotion.

    Args:
        candidate: The new score; larger is better.
        best: The best so far, or None if there is none.

    Returns:
        True if ``candidate`` is finite and strictly greater. NaN and infinity never win, and any finite
        candidate beats a best that is not finite.
    """
    if not math.isfinite(candidate):
        return False
    return best is None or not math.isfinite(best) or candidate > best


def auc(labels: Ints, probabilities: Floats) -> float:
    """Return the area under the ROC curve, as scikit-learn computes it.

    With two classes, class 1 is the positive class; with more classes the result is the unweighted mean of
    the one-vs-rest areas. It is NaN if a class has no samples or a probability is not finite.
    """
    from sklearn.metrics import roc_auc_score

    if not is_defined(labels, probabilities):
        return math.nan
    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(one_hot[:, 1], probabilities[:, 1]))
    # The multilabel form is the macro one-vs-rest mean; it accepts rows that do not sum to 1.
    return float(roc_auc_score(one_hot, probabilities, average="macro"))


def compare(labels: Ints, first: Floats, second: Floats, patients: PatientIds) -> Difference:
    """Test whether the AUCs of two models on the same samples differ.

    Uses the paired statistic of DeLong et al. (Biometrics 44:837, 1988), computed by ranks (Sun and Xu,
    IEEE Signal Processing Letters 21:1389, 2014). The samples of one patient form a cluster (Obuchowski,
    Biometrics 53:567, 1997); with one sample per patient, or unknown patients, this is DeLong's test. The
    statistic is compared with Student's t with (patients - 1) degrees of freedom, which keeps the level
    with few patients; if patients are unknown, samples count as patients.

    Args:
        labels: Class indices, (N,).
        first: Class probabilities of the first model, (N, K).
        second: Class probabilities of the second model, (N, K).
        patients: Index of each sample's patient, None if unknown, N.
    """
    from scipy.stats import t

    value = auc(labels, first) - auc(labels, second)
    if np.array_equal(first, second) and not math.isnan(value):
        return Difference(0.0, 1.0)
    if math.isnan(value):
        return Difference(value, math.nan)
    parts = (components(labels, first) - components(labels, second)).mean(axis=0)
    units = number_units(patients, len(labels))
    variance = clustered_variance(parts, labels, units)
    if not variance > ROUNDING_NOISE:  # NaN: too few samples; 0: the difference cannot be scaled
        return Difference(value, 1.0 if value == 0 else math.nan)
    return Difference(value, float(2 * t.sf(abs(value) / math.sqrt(variance), units.max())))


def number_units(patients: PatientIds, count: int) -> Ints:
    """Return the index of each sample's independent unit, (N,): its patient if all are known, else itself."""
    if None in patients:
        return np.arange(count)
    return np.unique(np.array(patients, dtype=np.int64), return_inverse=True)[1].astype(np.int64)


def is_defined(labels: Ints, probabilities: Floats) -> bool:
    """Return whether every class has samples and every probability is finite."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    return bool(counts.all() and np.isfinite(probabilities).all())


def positives_of(classes: int) -> Sequence[int]:
    """Return the positive class of each area that the AUC averages."""
    return [1] if classes == 2 else range(classes)


def components(labels: Ints, probabilities: Floats) -> Floats:
    """Return the contribution of each sample to each area, (areas, N), summed over its pairs.

    These are DeLong's structural components, V10 / positives and V01 / negatives.
    """
    from scipy.stats import rankdata

    found = []
    for index in positives_of(probabilities.shape[1]):
        positive, scores = labels == index, probabilities[:, index]
        pairs = int(positive.sum()) * int((~positive).sum())
        ranks, own = rankdata(scores), np.empty(len(labels))
        # Midranks count the samples below, ties as a half; ranks within the same class are subtracted.
        own[positive] = (ranks[positive] - rankdata(scores[positive])) / pairs
        below = ranks[~positive] - rankdata(scores[~positive])
        own[~positive] = (positive.sum() - below) / pairs
        found.append(own)
    return np.stack(found)


def cluster_sums(parts: Floats, labels: Ints, units: Ints) -> Floats:
    """Return each unit's sum of the deviations of ``parts`` from their class mean, (classes, units)."""
    sums = np.zeros((int(labels.max()) + 1, int(units.max()) + 1))
    means = np.bincount(labels, weights=parts) / np.bincount(labels)
    np.add.at(sums, (labels, units), parts - means[labels])
    return sums


def clustered_variance(parts: Floats, labels: Ints, units: Ints) -> float:
    """Return the variance of a sum of parts over classes of fixed size; NaN with one unit in a class.

    This is Obuchowski's clustered variance (1997) with one class per row; without clusters it is DeLong's.
    """
    sums = cluster_sums(parts, labels, units)
    there = np.zeros_like(sums, dtype=bool)
    there[labels, units] = True
    counts = there.sum(axis=1)
    if counts.min() < 2:
        return math.nan
    scale = np.full((len(sums), len(sums)), there.shape[1] / (there.shape[1] - 1))
    np.fill_diagonal(scale, counts / (counts - 1))
    return float((scale * (sums @ sums.T)).sum())


def corrected_auc(labels: Ints, models: Sequence[Floats], patients: PatientIds) -> float:
    """Return the AUC to expect on new samples of the model that is best on these.

    Bootstrap bias correction (Tsamardinos et al., Machine Learning 107:1895, 2018, doi
    10.1007/s10994-018-5714-4): each draw resamples whole patients, and the model that is best on the drawn
    patients is scored on the others. The mean of these scores corrects for the choice among the models,
    not for choices within each model, such as its best epoch.

    Args:
        labels: Class indices, (N,).
        models: Class probabilities of each model, (N, K), in an order that does not depend on their AUC.
        patients: Index of each sample's patient, None if unknown, N.

    Returns:
        The corrected AUC; NaN if no draw leaves samples of every class on both sides, or a probability is
        not finite.
    """
    units = number_units(patients, len(labels))
    count = int(units.max()) + 1
    draws = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    inside, outside = np.empty((2, len(models), DRAWS))
    for row, probabilities in enumerate(models):
        if not np.isfinite(probabilities).all():
            return math.nan
        inside[row] = _weighted_aucs(labels, probabilities, draws[:, units])
        outside[row] = _weighted_aucs(labels, probabilities, (draws == 0)[:, units].astype(np.int64))
    usable = np.isfinite(inside).all(axis=0) & np.isfinite(outside).all(axis=0)
    if not usable.any():
        return math.nan
    inside, outside = inside[:, usable], outside[:, usable]
    return float(outside[inside.argmax(axis=0), np.arange(outside.shape[1])].mean())


def _weighted_aucs(labels: Ints, probabilities: Floats, weights: Ints) -> Floats:
    """Return the AUC for each row of weights (B, N), (B,); NaN if a class has no weight."""
    areas = [
        _weighted_area(labels == index, probabilities[:, index], weights)
        for index in positives_of(probabilities.shape[1])
    ]
    found: Floats = np.mean(areas, axis=0)
    return found


def _weighted_area(positive: NDArray[np.bool_], scores: Floats, weights: Ints) -> Floats:
    """Return one AUC per row of weights (B, N), which say how often each sample counts; (B,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])  # the first sample of each tie
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * positive[order], starts, axis=1)
    negatives = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        areas: Floats = wins / pairs
    return areas
