"""Score a split during training, and the best weights at the end."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.batches import BatchLoader, sequential_batches
from ..data.dataset import Split
from ..evaluation.metric_names import BEST_EPOCH, BEST_THRESHOLD
from ..evaluation.metrics import Scores, evaluate, softmax
from ..evaluation.predictions import Predictions, write_predictions
from ..evaluation.score_plots import save_plots
from ..models.forward import ModelContext, predict_logits
from ..utils.config import Config
from ..utils.distributed import ProcessGroup
from .checkpoint import TrainerState
from .recorder import EPOCH_METRICS


@dataclass(frozen=True)
class SplitScores:
    """Probabilities of one split, float64 ``(N, K)`` in the order of ``split``, and their scores."""

    split: Split
    probabilities: NDArray[np.float64]
    scores: Scores


def score_split(
    context: ModelContext, loader: BatchLoader, name: str, threshold: float | str, batch_size: int
) -> SplitScores:
    """Run the model over a split and score it.

    In a distributed training every rank runs its share of the images; all ranks return the same scores.

    Args:
        context: The model to run.
        loader: Loads the images.
        name: ``train``, ``val`` or ``test``.
        threshold: The operating threshold, or the policy that chooses it on this split.
        batch_size: Images per forward pass; the scores do not depend on it.
    """
    dataset, split = loader.dataset, loader.dataset.splits[name]
    positions = np.arange(len(split))[context.process_group.shard(len(split))]
    with closing(loader.load(name, sequential_batches(positions, batch_size))) as images:
        batches = _stop_together(images, context.process_group, len(split), batch_size)
        if len(positions):
            # Always in float32: scores and threshold must hold for the served model.
            logits = predict_logits(context.model, context.spec, batches, device=context.device)
        else:  # more ranks than images: this rank only joins the checks for a stop
            logits = torch.zeros(len(list(batches)), len(dataset.classes))
    logits = context.process_group.all_gather(logits, len(split))
    return SplitScores(split, softmax(logits), evaluate(split.labels, logits, threshold))


def _stop_together(
    images: Iterator[Tensor], group: ProcessGroup, count: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield the batches of this rank; check for a stop equally often on every rank."""
    for _ in range(-(-count // group.world_size) // batch_size + 1):
        group.check_stop()
        yield from islice(images, 1)


@dataclass(frozen=True)
class Results:
    """Scores of the best weights on ``val`` and, if there is such a split, on ``test``."""

    splits: dict[str, SplitScores]
    threshold: float

    def metrics(self, state: TrainerState) -> dict[str, float]:
        """Return the metrics to log at the end of a run."""
        best = state.history[state.best_epoch - 1]
        names = [metric.name for metric in EPOCH_METRICS if metric.best == "at the end"]
        metrics = {BEST_EPOCH: float(state.best_epoch), BEST_THRESHOLD: self.threshold}
        metrics |= {f"best_{name}": best[name] for name in names}
        test = self.splits.get("test")
        return metrics if test is None else metrics | test.scores.named("test")


def score_best(context: ModelContext, loader: BatchLoader, config: Config) -> Results:
    """Score the best weights: the threshold is chosen on val and applied to test.

    This is the only place where training uses the test split.
    """
    size = config.training.batch_size
    val = score_split(context, loader, "val", config.evaluation.threshold, size)
    splits = {"val": val}
    if "test" in loader.dataset.splits:
        splits["test"] = score_split(context, loader, "test", val.scores.threshold, size)
    return Results(splits, val.scores.threshold)


def write_results(
    results: Results, state: TrainerState, classes: Sequence[str], *, predictions: Path, plots: Path
) -> tuple[list[Path], list[Path]]:
    """Write ``{split}.csv`` into one folder and the plots into the other; return both lists of files."""
    tables = [predictions / f"{name}.csv" for name in results.splits]
    for path, scored in zip(tables, results.splits.values(), strict=True):
        split = scored.split
        made = Predictions(split.hashes, split.patients, split.labels, scored.probabilities, tuple(classes))
        write_predictions(path, made)
    figures = save_plots(
        plots,
        history=state.history,
        best_epoch=state.best_epoch,
        splits={name: (scored.split.labels, scored.probabilities) for name, scored in results.splits.items()},
        classes=classes,
        threshold=results.threshold,
    )
    return tables, figures
