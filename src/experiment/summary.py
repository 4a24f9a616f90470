"""The summary of a finished training: scores with their intervals, and what they rest on."""

import math
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from ..data.dataset import Dataset
from ..evaluation.intervals import Estimate, estimate, few_units
from ..evaluation.metrics import optimism
from ..training.checkpoint import TrainerState
from ..training.scoring import Results, SplitScores
from ..utils.cli import counted
from ..utils.console import is_interactive

_WIDTH = 100
_MAX_CLASSES = 12  # that are listed
_SPLITS = {"val": "validation", "test": "test"}
_SCORES = {"auc": "AUC", "acc": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}


def print_scores(dataset: Dataset, state: TrainerState, results: Results, policy: float | str) -> None:
    """Print the scores of the best epoch, at most 100 columns wide.

    Args:
        dataset: The data.
        state: The state at the end of the training.
        results: Scores of the best weights.
        policy: ``evaluation.threshold``.
    """
    width = min(Console().width, _WIDTH) if is_interactive() else _WIDTH  # a pipe has none
    # Without markup: class names come from the data.
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(_table(dataset, results))
    print(
        f"best val AUC {state.best_val_auc:.4f} (epoch {state.best_epoch}), threshold {results.threshold:.4f}"
    )
    for note in (*_few_notes(dataset, results), optimism(policy)):
        if note is not None:
            print(textwrap.fill(note, _WIDTH))


def _table(dataset: Dataset, results: Results) -> Table:
    table = Table("", *results.splits, title="scores of the best epoch, with 95 % intervals")
    for cells in _counts(dataset, list(results.splits)):
        table.add_row(*cells)
    table.add_section()
    columns = [_scores(scored, results.threshold) for scored in results.splits.values()]
    for cells in zip((*_SCORES.values(), "loss"), *columns, strict=True):
        table.add_row(*cells)
    return table


def _counts(dataset: Dataset, splits: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each class: its name, and how many images and patients each split has of it."""
    shown = {(split, name): _count(images, patients) for split, name, images, patients in dataset.table()}
    for index, name in enumerate(dataset.classes[:_MAX_CLASSES]):
        positive = " (positive)" if len(dataset.classes) == 2 and index == 1 else ""
        yield (f"n of class {name}{positive}", *(shown[split, name] for split in splits))
    if len(dataset.classes) > _MAX_CLASSES:
        totals = (_count(len(dataset.splits[split]), None) for split in splits)
        yield (f"n of all {len(dataset.classes)} classes", *totals)


def _count(images: int, patients: int | None) -> str:
    known = [] if patients is None else [counted(patients, "patient")]
    return ", ".join([counted(images, "image"), *known])


def _scores(scored: SplitScores, threshold: float) -> list[str]:
    """Return the scores of a split with intervals, and the loss."""
    split = scored.split
    estimates = estimate(split.labels, scored.probabilities, split.patients, threshold)
    cells = [_shown(getattr(scored.scores, name), estimates[name]) for name in _SCORES]
    return [*cells, f"{scored.scores.loss:.4f}"]


def _shown(value: float, found: Estimate) -> str:
    if math.isnan(value) or math.isnan(found.low):
        return f"{value:.4f} (no interval)"
    return f"{value:.4f} ({found.low:.4f} to {found.high:.4f})"


def _few_notes(dataset: Dataset, results: Results) -> Iterator[str]:
    """Yield a sentence for each split that has too few patients of a class."""
    for name, scored in results.splits.items():
        note = few_units(scored.split.labels, scored.split.patients, dataset.classes, _SPLITS[name])
        if note is not None:
            yield note
