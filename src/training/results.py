"""What a run leaves behind: scores of the best weights, predictions, plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.loading import BatchLoader
from ..utils.config import Config
from .checkpoint import TrainerState
from .evaluation import Network, SplitScores, score_split
from .plots import save_plots
from .predictions import write_predictions


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
