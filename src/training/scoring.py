"""Scores one split with the one forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.dataset import Split
from ..data.loading import BatchLoader, sequential_batches
from ..evaluation.metrics import Scores, evaluate, softmax
from ..evaluation.predictions import write_predictions
from ..evaluation.score_plots import save_plots
from ..models.forward import Network, predict_logits
from ..utils.config import Config
from ..utils.processes import Processes
from .checkpoint import TrainerState


@dataclass(frozen=True)
class SplitScores:
    """One split's probabilities, float64 ``(N, K)`` in the order of ``split``, and their scores."""

    split: Split
    probabilities: NDArray[np.float64]
    scores: Scores


def score_split(
    network: Network, loader: BatchLoader, name: str, threshold: float | str, batch_size: int
) -> SplitScores:
    """Runs the model over a split and scores it; each of several processes runs it over its share.

    Every image counts once, and all get the same scores from what they gather.

    Args:
        network: What to run.
        loader: Loads the images.
        name: ``train``, ``val`` or ``test``.
        threshold: The operating threshold, or the rule that chooses it on this very split.
        batch_size: Images per forward pass; it does not change the scores.
    """
    dataset, split = loader.dataset, loader.dataset.splits[name]
    positions = np.arange(len(split))[network.processes.share(len(split))]
    with closing(loader.load(name, sequential_batches(positions, batch_size))) as images:
        batches = _in_step(images, network.processes, len(split), batch_size)
        if len(positions):
            # In float32 whatever training does: scores and threshold must hold for the model as it is served.
            logits = predict_logits(network.model, network.spec, batches, device=network.device)
        else:  # more processes than images: it asks to stop with the others, and has nothing to add
            logits = torch.zeros(len(list(batches)), len(dataset.classes))
    logits = network.processes.joined(logits, len(split))
    return SplitScores(split, softmax(logits), evaluate(split.labels, logits, threshold))


def _in_step(images: Iterator[Tensor], processes: Processes, count: int, batch_size: int) -> Iterator[Tensor]:
    """The batches of this process; where it has one batch less than others, it asks as often to stop."""
    for _ in range(-(-count // processes.count) // batch_size + 1):
        processes.check_stop()
        yield from islice(images, 1)


@dataclass(frozen=True)
class Results:
    """The best weights' scores: ``val``, and ``test`` where there is such a split."""

    splits: dict[str, SplitScores]
    threshold: float

    def metrics(self, state: TrainerState) -> dict[str, float]:
        """The metrics at the end of a run; ``best_val_auc`` was logged when it was reached."""
        best = state.history[state.best_epoch - 1]
        names = ("val_acc", "val_sensitivity", "val_specificity", "val_loss")
        metrics = {"best_epoch": float(state.best_epoch), "best_threshold": self.threshold}
        metrics |= {f"best_{name}": best[name] for name in names}
        test = self.splits.get("test")
        return metrics if test is None else metrics | test.scores.named("test")


def score_best(network: Network, loader: BatchLoader, config: Config) -> Results:
    """Scores the weights in ``network``: the threshold is chosen on val and applied to test.

    The test split is looked at here and nowhere else.
    """
    size = config.training.batch_size
    val = score_split(network, loader, "val", config.evaluation.threshold, size)
    splits = {"val": val}
    if "test" in loader.dataset.splits:
        splits["test"] = score_split(network, loader, "test", val.scores.threshold, size)
    return Results(splits, val.scores.threshold)


def write_results(
    results: Results, state: TrainerState, classes: Sequence[str], *, predictions: Path, plots: Path
) -> tuple[list[Path], list[Path]]:
    """Writes ``{split}.csv`` into one folder and the plots into the other; returns both lists of files."""
    tables = [
        _write_table(predictions / f"{name}.csv", scored, classes) for name, scored in results.splits.items()
    ]
    pictures = save_plots(
        plots,
        history=state.history,
        best_epoch=state.best_epoch,
        splits={name: (scored.split.labels, scored.probabilities) for name, scored in results.splits.items()},
        classes=classes,
        threshold=results.threshold,
    )
    return tables, pictures


def _write_table(path: Path, scored: SplitScores, classes: Sequence[str]) -> Path:
    write_predictions(
        path,
        samples=scored.split.hashes,
        patients=scored.split.patients,
        labels=scored.split.labels,
        probabilities=scored.probabilities,
        classes=classes,
    )
    return path
