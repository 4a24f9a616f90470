"""The AUC of the best of several models, corrected for having been chosen by it."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .auc import number_units, positives_of

DRAWS = 100
"""Bootstrap draws; 20 give the same on average and vary more."""
_SEED = 0  # the same predictions always give the same correction


def corrected_auc(
    labels: NDArray[np.int64], models: Sequence[NDArray[np.float64]], patients: Sequence[int | None]
) -> float:
    """Return the AUC to expect of the model that is best on these samples, on others like them.

    Bootstrap bias correction (Tsamardinos et al., Machine Learning 107:1895, 2018, doi
    10.1007/s10994-018-5714-4): in each draw of whole patients the model that is best on the patients drawn
    is scored on those not drawn. The mean of these scores pays for the choice among the models, not for what
    was chosen within each, such as its best epoch.

    Args:
        labels: Class indices, (N,).
        models: Class probabilities of each model, (N, K), in an order that does not depend on their AUC.
        patients: Index of each sample's patient, None where unknown, N.

    Returns:
        The corrected AUC; NaN where no draw leaves samples of every class on both sides, or a probability is
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


def _weighted_aucs(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the AUC for each row of weights (B, N), (B,); NaN where a class has no weight."""
    areas = [
        _weighted_area(labels == index, probabilities[:, index], weights)
        for index in positives_of(probabilities.shape[1])
    ]
    found: NDArray[np.float64] = np.mean(areas, axis=0)
    return found


def _weighted_area(
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
