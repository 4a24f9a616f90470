"""Style shared by all plots, PNG output, and the learning curves.

Uses only Matplotlib's object interface: no display, no global state, safe in any thread. Each split has
the same color and line style in every plot (Okabe and Ito's palette for color-blind readers).
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.io import atomic_file
from .auc import Floats
from .metric_names import VAL_AUC

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase


_CLASS_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D00", "#555555")
GUIDE: dict[str, Any] = {"color": "#999999", "linewidth": 1.0, "linestyle": ":"}
"""Style of reference lines."""
NAMED_CLASSES = 12
"""Largest number of classes with a legend entry, or a number in each cell of a confusion matrix."""
_DPI = 110
_SPLIT_COLORS = {"train": "#555555", "val": "#0072B2", "test": "#D55E00"}
_SPLIT_COLORS |= {"champion": "#0072B2", "runner-up": "#D55E00"}
_DASHED = ("test", "runner-up")
_NAME_LENGTH = 22


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def readable(classes: Sequence[str]) -> list[str]:
    """Return class names that the font has all letters of, shortened, with ``$`` escaped."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    names = []
    for index, name in enumerate(classes):
        drawable = name.strip() and all(font.get_char_index(ord(letter)) for letter in name)
        shown = name if drawable else f"class {index}"
        if len(shown) > _NAME_LENGTH:  # long names often differ at the end, so the middle is cut
            shown = f"{shown[: _NAME_LENGTH - 9]}…{shown[-8:]}"
        names.append(shown.replace("$", r"\$"))
    return names


def split_style(split: str) -> tuple[str, str]:
    """Return color and line style of a split."""
    return _SPLIT_COLORS.get(split, "#009E73"), "--" if split in _DASHED else "-"


def class_style(index: int) -> tuple[str, str]:
    """Return color and line style of a class."""
    rounds, place = divmod(index, len(_CLASS_COLORS))
    return _CLASS_COLORS[place], ("-", "--", ":")[rounds % 3]


def unit_axes(axes: "Axes", x_label: str, y_label: str) -> None:
    """Make the axes a square from 0 to 1."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)


def legend_below(figure: "FigureBase", axes: "Axes", columns: int = 1) -> None:
    """Put the legend below the axes, where it covers no curve."""
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def height_for(entries: int) -> float:
    """Return the height in inches of a square panel, five inches wide, with a legend of ``entries`` lines."""
    return 5.7 + 0.19 * entries


def save_figure(path: Path, figure: "Figure", colors: int = 128) -> Path:
    """Write a figure as a PNG file; figures with photographs need the full palette of 256 ``colors``."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    image = Image.open(drawn).convert("RGB")
    with atomic_file(path) as file:
        # A palette takes a third of the space, and line drawings lose nothing.
        image.quantize(colors).save(file, format="PNG", optimize=True)
    return path


def learning_curves(history: Sequence[Mapping[str, float]], best_epoch: int) -> "Figure":
    """Draw loss and validation AUC by epoch, and mark the best epoch."""
    figure = new_figure(9.2, 3.7)
    left, right = figure.subplots(1, 2)
    for split in ("train", "val"):
        _history_line(left, history, f"{split}_loss", split)
    _history_line(right, history, VAL_AUC, "val")
    left.set(title="Loss", ylabel="Cross entropy")
    right.set(title="Validation AUC", ylabel="AUC")
    epochs = _column(history, "epoch")
    best = _column(history, VAL_AUC)[epochs == best_epoch]
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
    color, _ = split_style(split)
    x, y = _column(history, "epoch"), _column(history, name)
    axes.plot(x, y, marker=marker, markersize=3.5, color=color, ls=dashes, label=split)


def _epoch_axis(axes: "Axes", epochs: Floats) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="Epoch", xlim=(0.5, max(epochs, default=1) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
