"""Scores of a split (loss, accuracy, AUC, sensitivity, specificity) and the operating threshold.

Everything is computed in float64 from the logits of a whole split at once, so that no score depends on
the batch size, on mixed precision, or on the number of processes.
"""

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .auc import Floats, Ints, auc

if TYPE_CHECKING:
    from torch import Tensor

_UNDECIDABLE = 0.5  # the threshold if the scores allow no choice
_ABOVE_ALL = 1.0 + 1e-6  # above every probability, as float64 and as float32
_POLICY = re.compile(r"(sensitivity|specificity)\s*>=\s*([0-9]*\.?[0-9]+)")


@dataclass(frozen=True)
class Scores:
    """The scores of one pass over a split.

    Attributes:
        loss: Mean cross entropy, in nats.
        acc: Fraction of correct decisions, 0 to 1.
        auc: Area under the ROC curve, 0 to 1.
        sensitivity: True positive rate of class 1; with more than two classes the macro average.
        specificity: True negative rate of class 1; with more than two classes the macro average.
        threshold: The operating threshold of the decisions.
    """

    loss: float
    acc: float
    auc: float
    sensitivity: float
    specificity: float
    threshold: float

    def named(self, prefix: str) -> dict[str, float]:
        """Return the five scores as metrics, for example ``val_loss`` for the prefix ``val``."""
        names = ("loss", "acc", "auc", "sensitivity", "specificity")
        return {f"{prefix}_{name}": getattr(self, name) for name in names}


def softmax(logits: "Tensor") -> Floats:
    """Return class probabilities (N, K) in float64 for logits (N, K) of any dtype and device."""
    probabilities: Floats = _as_float64(logits).softmax(dim=1).numpy()
    return probabilities


def decide(probabilities: Floats, threshold: float) -> Ints:
    """Return the decided class (N,) of each row of probabilities (N, K).

    With two classes, class 1 is decided if its probability is at least ``threshold``; with more classes,
    the class of the highest probability is decided and ``threshold`` is ignored.
    """
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= threshold).astype(np.int64)
    highest: Ints = probabilities.argmax(axis=1).astype(np.int64)
    return highest


def confusion(labels: Ints, decisions: Ints, classes: int) -> Ints:
    """Count samples by true class (rows) and decided class (columns), (classes, classes)."""
    cells = np.bincount(labels * classes + decisions, minlength=classes * classes)
    counts: Ints = cells.reshape(classes, classes).astype(np.int64)
    return counts


def class_rates(counts: Ints) -> tuple[Floats, Floats]:
    """Return one-vs-rest sensitivity and specificity of each class, (K,) each, from a confusion matrix.

    Sensitivity is NaN for a class without samples, specificity if no other class has samples.
    """
    hits = counts.diagonal()
    positives = counts.sum(axis=1)
    negatives = counts.sum() - positives
    rejected = negatives - (counts.sum(axis=0) - hits)
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity: Floats = hits / positives
        specificity: Floats = rejected / negatives
    return sensitivity, specificity


def choose_threshold(policy: float | str, labels: Ints, probabilities: Floats) -> float:
    """Return the operating threshold that a policy chooses on a split.

    The candidates lie midway between neighbouring observed scores (and midway from the outermost ones
    to 0 and 1), so that a tiny numeric difference on another machine flips no decision.

    Args:
        policy: A number, which is returned unchanged; ``youden``, which maximizes sensitivity +
            specificity - 1 (Youden 1950; the most sensitive one of equals); ``sensitivity>=X``, the
            highest specificity among thresholds of at least that sensitivity (the most sensitive one of
            equals); or ``specificity>=X``, its mirror image.
        labels: Class indices, (N,).
        probabilities: Class probabilities, (N, 2).

    Returns:
        The threshold for `decide`; slightly above 1 if nothing may be decided positive although a score is
        exactly 1, and 0.5 if a score is not finite or a class has no samples.

    Raises:
        ConfigError: The policy is unknown, or there are more than two classes and it is not a number.
    """
    if not isinstance(policy, str):
        return float(policy)
    rule, target = _parse(policy)
    if probabilities.shape[1] != 2:
        raise ConfigError(
            f"evaluation.threshold: {policy!r} needs two classes and the data has {probabilities.shape[1]}, "
            "where the class of the highest probability is taken; set it to 0.5."
        )
    scores = probabilities[:, 1]
    positives, negatives = np.sort(scores[labels == 1]), np.sort(scores[labels != 1])
    if not np.isfinite(scores).all() or not len(positives) or not len(negatives):
        return _UNDECIDABLE
    values = np.unique(scores)
    # One more candidate than values: above the last one nothing is decided positive.
    missed = np.append(np.searchsorted(positives, values), len(positives))
    rejected = np.append(np.searchsorted(negatives, values), len(negatives))
    return float(_candidates(values)[_pick(rule, target, len(positives) - missed, rejected)])


def optimism(policy: float | str) -> str | None:
    """Return the caveat for scores of the split on which the policy chose the threshold.

    None if the policy is a number, which was not chosen on any split.
    """
    if not isinstance(policy, str):
        return None
    return (
        f"the threshold was chosen on the validation split ({policy}): accuracy, sensitivity and specificity "
        "there are optimistic, those of new images tend to be lower"
    )


def evaluate(labels: Ints, logits: "Tensor", threshold: float | str) -> Scores:
    """Score one pass over a split.

    Args:
        labels: Class indices, (N,).
        logits: Raw outputs of the model, (N, K), any dtype and device.
        threshold: A number to apply, or a policy that chooses one on this very split
            (see `choose_threshold`).

    Returns:
        The scores and the threshold. All five scores are NaN if a logit is not finite or the split is
        empty; AUC, sensitivity or specificity are NaN if a class has no samples.

    Raises:
        ConfigError: The policy is unknown or does not fit the number of classes.
    """
    import torch
    from torch.nn import functional as F

    probabilities = softmax(logits)
    chosen = choose_threshold(threshold, labels, probabilities)
    if not len(labels) or not torch.isfinite(logits).all():
        return Scores(math.nan, math.nan, math.nan, math.nan, math.nan, chosen)
    counts = confusion(labels, decide(probabilities, chosen), probabilities.shape[1])
    sensitivity, specificity = (r[1] if len(r) == 2 else r.mean() for r in class_rates(counts))
    return Scores(
        loss=F.cross_entropy(_as_float64(logits), torch.as_tensor(labels)).item(),
        acc=float(counts.trace() / counts.sum()),
        auc=auc(labels, probabilities),
        sensitivity=float(sensitivity),
        specificity=float(specificity),
        threshold=chosen,
    )


def _as_float64(logits: "Tensor") -> "Tensor":
    return logits.detach().cpu().double()  # moved to the CPU first: not every device has float64


def _parse(policy: str) -> tuple[str, float]:
    """Split a policy into the rule and its target (unused with ``youden``)."""
    text = policy.strip()
    if text == "youden":
        return text, 0.0
    match = _POLICY.fullmatch(text)
    if match and float(match[2]) <= 1:
        return match[1], float(match[2])
    known = ["youden", "sensitivity>=0.90", "specificity>=0.90"]
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"evaluation.threshold: {policy!r} is not a threshold policy; {hint}Use a number from 0 to 1 or one "
        f"of {', '.join(known)} (a rate from 0 to 1)."
    )


def _candidates(values: Floats) -> Floats:
    """Return the thresholds below, between and above V ascending scores, (V + 1,)."""
    above = (values[-1] + 1) / 2 if values[-1] < 1 else _ABOVE_ALL
    between = (values[:-1] + values[1:]) / 2
    # The midpoint of two adjacent floats rounds to one of them; only the upper one is correct.
    between = np.where(between > values[:-1], between, values[1:])
    return np.concatenate([[values[0] / 2], between, [above]])


def _pick(rule: str, target: float, hits: Ints, rejected: Ints) -> int:
    """Return the index of the best candidate, given true positives and true negatives at each.

    Candidates ascend, so sensitivity falls and specificity rises with the index.
    """
    positives, negatives = int(hits[0]), int(rejected[-1])
    if rule == "youden":
        # The index times both counts is an integer, so that ties compare as equal.
        return int(np.argmax(hits * negatives + rejected * positives))
    if rule == "sensitivity":
        allowed = hits / positives >= target
        return int(np.argmax(np.where(allowed, rejected, -1)))
    allowed = rejected / negatives >= target
    best = np.where(allowed, hits, -1)
    return int(len(best) - 1 - np.argmax(best[::-1]))
