"""One line per epoch on the terminal, or in the log of a job."""

from collections.abc import Sequence
from statistics import median

from ..evaluation.metric_names import TRAIN_LOSS, VAL_AUC, VAL_LOSS
from ..utils.cli import span
from ..utils.config import TrainingConfig
from ..utils.output import say
from .checkpoint import TrainerState

_TITLES = ("epoch", "train loss", "val loss", "val AUC", "", "learning rate", "images/s", "time left")
_WIDTHS = (9, 10, 10, 7, 4, 13, 8, 9)
_REPEAT = 20  # lines from one header to the next, for readers of the end of a log
_RECENT = 5  # epochs whose median duration predicts the time left


class EpochTable:
    """Table of the epochs that this process trains, printed line by line."""

    def __init__(self, state: TrainerState, settings: TrainingConfig) -> None:
        """Start a table of the epochs after those of ``state``, which has each epoch before it is printed."""
        self.epochs = int(settings.epochs)
        self._state = state
        self._patience = settings.early_stopping_patience
        self._lines = 0

    def begin(self) -> None:
        """Print where a resumed training continues."""
        state = self._state
        if state.epoch or state.steps:
            steps = f" and {state.steps} steps" if state.steps else ""
            best = state.best_val_auc
            shown = "" if best is None else f"; best val AUC {best:.4f} (epoch {state.best_epoch})"
            say(f"continuing after epoch {state.epoch}/{self.epochs}{steps}{shown}")

    def add_epoch(self) -> None:
        """Print the last epoch of the state."""
        if self._lines % _REPEAT == 0:
            say(_line(_TITLES))
        self._lines += 1
        say(_line(self._cells()))

    def end(self) -> None:
        """Print why the training ends before the last epoch, if it does."""
        if self._state.epoch < self.epochs:
            say(f"stopped early: no better val AUC in {self._patience} epochs (early_stopping_patience)")

    def _cells(self) -> tuple[str, ...]:
        history = self._state.history
        metrics = history[-1]
        epoch, speed = self._state.epoch, metrics["images_per_second"]
        # Epochs of earlier versions have no duration.
        durations = [row["epoch_seconds"] for row in history[-_RECENT:] if "epoch_seconds" in row]
        return (
            f"{epoch}/{self.epochs}",
            f"{metrics[TRAIN_LOSS]:#.4g}",
            f"{metrics[VAL_LOSS]:#.4g}",
            f"{metrics[VAL_AUC]:.4f}",
            "best" if self._state.best_epoch == epoch else "",
            f"{metrics['learning_rate']:.2e}",
            f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}",
            span((self.epochs - epoch) * median(durations)),
        )


def _line(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
