"""Plots of predictions: ROC, precision-recall, confusion matrices and calibration.

scikit-learn's displays show less: no count with its share, no operating point, no intervals of the
calibration, and no curve whose area is the average precision.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .auc import Floats, Ints, auc
from .metrics import class_rates, confusion, decide
from .plots import (
    GUIDE,
    NAMED_CLASSES,
    class_style,
    height_for,
    learning_curves,
    legend_below,
    new_figure,
    readable,
    save_figure,
    split_style,
    unit_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Splits = Mapping[str, tuple[Ints, Floats]]
"""Ints (N,) and probabilities (N, K) by split."""
_AREAS = {"roc": "AUC", "precision_recall": "AP"}
_TITLES = {"roc": "ROC", "precision_recall": "Precision and recall"}
_AXES = {"roc": ("1 − specificity", "Sensitivity"), "precision_recall": ("Recall (sensitivity)", "Precision")}
_BIN_SIZE = 15  # wanted number of samples in a calibration bin


def curves(
    kind: str, splits: Splits, names: Sequence[str], threshold: float | Mapping[str, float]
) -> "Figure":
    """Draw ``roc`` or ``precision_recall``: two classes with all splits together, else one panel per split.

    A mapping gives each split its own threshold, for splits that were scored by different models.
    """
    if len(names) > 2:
        return _class_panels(kind, splits, names)
    figure = new_figure(5.4, height_for(len(splits) * (2 if kind == "roc" else 3)))
    figure.suptitle(f"{_TITLES[kind]}, positive class: {names[1]}")
    axes = figure.subplots()
    for split, (labels, scores) in splits.items():
        own = threshold[split] if isinstance(threshold, Mapping) else threshold
        _split_curve(axes, kind, split, (labels == 1, scores[:, 1]), own)
    _finish(axes, kind)
    legend_below(figure, axes)
    return figure


def _class_panels(kind: str, splits: Splits, names: Sequence[str]) -> "Figure":
    named = len(names) if len(names) <= NAMED_CLASSES else 0
    figure = new_figure(5.0 * len(splits), height_for(named // 2 + 2))
    figure.suptitle(f"{_TITLES[kind]}, each class against the rest")
    panels = figure.subfigures(1, len(splits), squeeze=False)[0]  # each with its own legend
    for panel, (split, (labels, scores)) in zip(panels, splits.items(), strict=True):
        axes = panel.subplots()
        axes.set_title(f"{split} (n = {len(labels)})", fontsize=10)
        _class_curves(axes, kind, labels, scores, names)
        _finish(axes, kind)
        legend_below(panel, axes, columns=2)
    return figure


def _finish(axes: "Axes", kind: str) -> None:
    if kind == "roc":
        axes.plot([0, 1], [0, 1], **GUIDE)
    unit_axes(axes, *_AXES[kind])


def _split_curve(
    axes: "Axes", kind: str, split: str, cases: tuple[NDArray[np.bool_], Floats], threshold: float
) -> None:
    """Draw one split of two classes with its operating point and, for precision-recall, its prevalence."""
    target, scores = cases
    color, dashes = split_style(split)
    curve = _curve(kind, target, scores)
    if curve is None:
        axes.plot([], [], color=color, ls=dashes, label=f"{split}: undefined, a class is missing")
        return
    area = f"{split}: {_AREAS[kind]} {curve[2]:.3f} (n = {len(target)})"
    axes.plot(curve[0], curve[1], color=color, ls=dashes, label=area)
    x, y = _operating_point(kind, target, scores >= threshold)
    rates = f"sensitivity {y:.3f}, specificity {1 - x:.3f}"
    if kind == "precision_recall":
        rates = f"precision {y:.3f}, recall {x:.3f}"
    note = f"{split} at threshold {threshold:.3g}: {rates}"
    axes.plot([x], [y], "o", ms=9, mfc="white", mew=2, color=color, label=note, zorder=5)
    if kind == "precision_recall":
        share = target.mean()
        axes.axhline(share, **GUIDE | {"color": color}, label=f"{split}: prevalence {share:.3f}")


def _class_curves(axes: "Axes", kind: str, labels: Ints, scores: Floats, names: Sequence[str]) -> None:
    """Draw each class against the rest with the operating point of the argmax, and the mean curve."""
    decisions = decide(scores, math.nan)
    grid = np.linspace(0, 1, 201)
    heights, areas = [], []
    for index, name in enumerate(names):
        curve = _curve(kind, labels == index, scores[:, index])
        if curve is None:
            axes.plot([], [], color="white", label=f"{name}: no samples")
            continue
        x, y, area = curve
        color, dashes = class_style(index)
        label = f"{name}: {area:.3f}" if len(names) <= NAMED_CLASSES else None
        axes.plot(x, y, color=color, lw=1.2, ls=dashes, label=label)
        axes.plot(*_operating_point(kind, labels == index, decisions == index), "o", ms=5, color=color)
        heights.append(np.interp(grid, x, y))
        areas.append(area)
    if areas:
        label = f"mean of {len(areas)}: {_AREAS[kind]} {np.mean(areas):.3f}"
        mean = np.mean(heights, axis=0)
        start = 0.0 if kind == "roc" else mean[0]
        axes.plot([0, *grid], [start, *mean], color="black", lw=2.2, label=label)
    if kind == "precision_recall":
        share = 1 / len(names)
        axes.axhline(share, **GUIDE, label=f"mean prevalence {share:.3f}")
    axes.plot([], [], "o", ms=5, color="#555555", label="decision: highest probability")


def _curve(kind: str, target: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, float] | None:
    """Return x (ascending), y and area of one class against the rest; None if one side has no samples."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

    if target.all() or not target.any():
        return None
    if kind == "roc":
        false_rate, true_rate, _ = roc_curve(target, scores)
        return false_rate, true_rate, auc(target.astype(np.int64), np.column_stack([1 - scores, scores]))
    precision, recall, _ = precision_recall_curve(target, scores)
    # Average precision is the area under a step function, so the corners are drawn too.
    x, y = np.repeat(recall[::-1], 2)[:-1], np.repeat(precision[::-1], 2)[1:]
    return x, y, float(average_precision_score(target, scores))


def _operating_point(kind: str, target: NDArray[np.bool_], decided: NDArray[np.bool_]) -> tuple[float, float]:
    counts = confusion(target.astype(np.int64), decided.astype(np.int64), 2)
    sensitivity, specificity = (float(rate[1]) for rate in class_rates(counts))
    if kind == "roc":
        return 1 - specificity, sensitivity
    return sensitivity, float(counts[1, 1] / decided.sum()) if decided.any() else math.nan


def confusion_matrices(splits: Splits, names: Sequence[str], threshold: float) -> "Figure":
    """Draw the decisions of each split as counts and as percentages of the true class."""
    side = 2.6 + 0.55 * min(len(names), NAMED_CLASSES)
    figure = new_figure(side * len(splits) + 0.6, side + 0.3)
    rule = f"at threshold {threshold:.3g}" if len(names) == 2 else "by highest probability"
    figure.suptitle(f"Decisions {rule}")
    panels = figure.subplots(1, len(splits), squeeze=False)[0]
    for axes, (split, (labels, scores)) in zip(panels, splits.items(), strict=True):
        counts = confusion(labels, decide(scores, threshold), len(names))
        axes.set_title(f"{split} (n = {len(labels)})", fontsize=10)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="Decided class", ylabel="True class (each row is 100 %)")
        if len(names) <= NAMED_CLASSES:
            _write_cells(axes, counts, shares, names)
        else:
            figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def _write_cells(axes: "Axes", counts: Ints, shares: Floats, names: Sequence[str]) -> None:
    ticks = np.arange(len(names))
    crowded = max(map(len, names)) * len(names) > 40
    slant: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(ticks, names, fontsize=8, **slant)
    axes.set_yticks(ticks, names, fontsize=8)
    size = 10 if len(names) <= 5 else 7
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else "black"
        text = f"{count}\n{shares[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def calibration(splits: Splits, names: Sequence[str]) -> "Figure":
    """Draw the reliability curve above a histogram of the predicted probabilities.

    Uses the probability of class 1 for two classes, and the confidence in the decided class for more.
    """
    figure = new_figure(5.4, 7.6)
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    binary = len(names) == 2
    subject = f"Probability of {names[1]}" if binary else "Confidence in the decided class"
    figure.suptitle(f"Calibration: {subject[0].lower()}{subject[1:]}")
    upper.plot([0, 1], [0, 1], **GUIDE)
    believed = {split: p[:, 1] if binary else p.max(axis=1) for split, (_, p) in splits.items()}
    for split, (labels, scores) in splits.items():
        happened = labels == 1 if binary else labels == decide(scores, math.nan)
        label = f"{split}: Brier score {_brier(labels, scores):.3f}"
        _reliability(upper, split, calibration_bins(believed[split], happened), label)
    colors = [split_style(split)[0] for split in splits]
    lower.hist(list(believed.values()), bins=np.linspace(0, 1, 11).tolist(), color=colors)
    lower.set(xlabel=subject, ylabel="Samples")
    unit_axes(upper, "", f"Share that is {names[1]}" if binary else "Share decided rightly")
    legend_below(figure, upper)
    return figure


def calibration_bins(believed: Floats, happened: NDArray[np.bool_]) -> Floats:
    """Group predictions into bins of about equal size.

    Args:
        believed: Predicted probabilities, (N,); equal ones share a bin.
        happened: Whether each prediction came true, (N,).

    Returns:
        One row per bin, ascending: mean prediction, fraction of positives, samples; (B, 3), B <= 10.
    """
    if not len(believed):
        return np.empty((0, 3))
    wanted = min(max(len(believed) // _BIN_SIZE, 2), 10)
    inner = np.unique(np.quantile(believed, np.linspace(0, 1, wanted + 1)[1:-1]))
    bins = np.searchsorted(inner, believed, side="right")
    return np.array(
        [
            [believed[own].mean(), happened[own].mean(), own.sum()]
            for own in (bins == b for b in np.unique(bins))
        ]
    )


def expected_calibration_error(bins: Floats) -> float:
    """Return the mean distance between prediction and outcome, weighted by samples (Guo et al. 2017)."""
    return float(np.average(np.abs(bins[:, 0] - bins[:, 1]), weights=bins[:, 2])) if len(bins) else math.nan


def _brier(labels: Ints, scores: Floats) -> float:
    """Return the Brier score (1950): of class 1 for two classes, summed over the classes for more."""
    if not len(labels):
        return math.nan
    errors = (scores - np.eye(scores.shape[1])[labels]) ** 2
    return float((errors[:, 1] if scores.shape[1] == 2 else errors.sum(axis=1)).mean())


def _reliability(axes: "Axes", split: str, bins: Floats, label: str) -> None:
    """Draw the reliability curve of one split with 95 % Wilson intervals."""
    from scipy.stats import binomtest

    color, dashes = split_style(split)
    believed, share, count = bins.T
    if len(bins):
        sizes = "–".join(dict.fromkeys([f"{count.min():.0f}", f"{count.max():.0f}"]))
        error = expected_calibration_error(bins)
        label += f", calibration error {error:.3f} (bins: {len(bins)} of {sizes})"
    ranges = [binomtest(round(s * n), round(n)).proportion_ci(method="wilson") for _, s, n in bins]
    axes.vlines(believed, [r.low for r in ranges], [r.high for r in ranges], color=color, alpha=0.35)
    axes.plot(believed, share, "o", ls=dashes, ms=5, color=color, label=label)


def save_plots(
    folder: Path,
    *,
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
    splits: Splits,
    classes: Sequence[str],
    threshold: float,
) -> list[Path]:
    """Draw learning curves, ROC, precision-recall, confusion matrices and calibration.

    Args:
        folder: Folder of the PNG files; created if missing.
        history: One row per epoch with ``epoch``, ``train_loss``, ``val_loss``, ``val_auc``; NaN is a gap.
        best_epoch: The epoch to mark.
        splits: Ints and probabilities of ``val`` and, if it exists, ``test``; rows with a probability
            that is not finite are dropped.
        classes: Class names in index order, K.
        threshold: The operating threshold for two classes.

    Returns:
        The files, in the order named above.

    Raises:
        OSError: A file cannot be written.
    """
    curves = save_figure(folder / "learning_curves.png", learning_curves(history, best_epoch))
    return [curves, *save_score_plots(folder, splits=splits, classes=classes, threshold=threshold)]


def save_score_plots(folder: Path, *, splits: Splits, classes: Sequence[str], threshold: float) -> list[Path]:
    """Draw the plots that need predictions only; the arguments are those of `save_plots`."""
    names = readable(classes)
    usable = {}
    for split, (labels, scores) in splits.items():
        kept = np.isfinite(scores).all(axis=1)
        usable[split] = labels[kept], scores[kept]
    figures = {
        "roc": curves("roc", usable, names, threshold),
        "precision_recall": curves("precision_recall", usable, names, threshold),
        "confusion_matrix": confusion_matrices(usable, names, threshold),
        "calibration": calibration(usable, names),
    }
    return [save_figure(folder / f"{name}.png", figure) for name, figure in figures.items()]
