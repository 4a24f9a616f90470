"""The pictures of a finished run, as PNG files."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..utils.io import atomic_file
from . import plot_scores
from . import plot_style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def save_plots(
    folder: Path,
    *,
    history: Sequence[Mapping[str, float]],
    best_epoch: int,
    splits: Mapping[str, tuple[Labels, Floats]],
    classes: Sequence[str],
    threshold: float,
) -> list[Path]:
    """Draw learning curves, ROC, precision-recall, confusion matrices and calibration.

    Args:
        folder: Where the PNG files go; made where missing.
        history: One row per epoch with ``epoch``, ``train_loss``, ``val_loss``, ``val_auc``; NaN is a gap.
        best_epoch: The epoch to mark.
        splits: Labels (N,) and probabilities (N, K) of ``val`` and, where there is one, ``test``.
            Rows with a probability that is not finite are left out.
        classes: Class names in index order, K.
        threshold: The operating threshold of two classes.

    Returns:
        The files, in the order named above.

    Raises:
        OSError: A file cannot be written.
    """
    curves = save_figure(folder / "learning_curves.png", learning_curves(history, best_epoch))
    return [curves, *save_score_plots(folder, splits=splits, classes=classes, threshold=threshold)]


def save_score_plots(
    folder: Path, *, splits: Mapping[str, tuple[Labels, Floats]], classes: Sequence[str], threshold: float
) -> list[Path]:
    """Draw what can be drawn of predictions alone; the arguments are those of `save_plots`."""
    names = style.readable(classes)
    usable = {split: _finite(labels, scores) for split, (labels, scores) in splits.items()}
    figures = {
        "roc": plot_scores.curves("roc", usable, names, threshold),
        "precision_recall": plot_scores.curves("precision_recall", usable, names, threshold),
        "confusion_matrix": plot_scores.confusion_matrices(usable, names, threshold),
        "calibration": plot_scores.calibration(usable, names),
    }
    return [save_figure(folder / f"{name}.png", figure) for name, figure in figures.items()]


def save_figure(path: Path, figure: "Figure", colours: int = 128) -> Path:
    """Write a figure as a PNG file; photographs in it need the full palette of 256 ``colours``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(drawn, format="png", dpi=figure.dpi)
    image = Image.open(drawn).convert("RGB")
    with atomic_file(path) as file:
        # A palette is a third of the size, and line drawings lose nothing by it.
        image.quantize(colours).save(file, format="PNG", optimize=True)
    return path


def _finite(labels: Labels, scores: Floats) -> tuple[Labels, Floats]:
    kept = np.isfinite(scores).all(axis=1)
    return labels[kept], scores[kept]


def learning_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> "Figure":
    """Draw loss and validation AUC by epoch, and mark the best."""
    figure = style.new_figure(9.2, 3.7)
    left, right = figure.subplots(1, 2)
    for split in ("train", "val"):
        _history_line(left, history, f"{split}_loss", split)
    _history_line(right, history, "val_auc", "val")
    left.set(title="Loss", ylabel="Cross entropy")
    right.set(title="Validation AUC", ylabel="AUC")
    epochs = _column(history, "epoch")
    best = _column(history, "val_auc")[epochs == best_epoch]
    for axes in (left, right):
        score = f", AUC {best[0]:.3f}" if axes is right and len(best) else ""
        label = f"best: epoch {best_epoch}{score}"
        axes.axvline(best_epoch, color="#009E73", linewidth=1.2, linestyle="-.", label=label)
        _epoch_axis(axes, epochs)
    return figure


def _column(history: Sequence[Mapping[str, float]], name: str) -> Floats:
    values = np.array([row.get(name, math.nan) for row in history], dtype=np.float64)
    return np.where(np.isfinite(values), values, math.nan)


def _history_line(axes: "Axes", history: Sequence[Mapping[str, float]], name: str, split: str) -> None:
    marker = "o" if len(history) <= 40 else ""
    dashes = "--" if split == "train" else "-"
    colour, _ = style.split_style(split)
    values = _column(history, name)
    axes.plot(
        _column(history, "epoch"), values, marker=marker, markersize=3.5, color=colour, ls=dashes, label=split
    )


def _epoch_axis(axes: "Axes", epochs: Floats) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="Epoch", xlim=(0.5, max(epochs, default=1) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
