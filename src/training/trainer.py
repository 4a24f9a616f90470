"""The training loop."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..data.dataset import Dataset
from ..data.loading import BatchLoader
from ..errors import TrainingError
from ..models.forward import Network, train_mode
from ..utils.config import Config
from ..utils.progress import bar
from ..utils.runtime import Stopped, uninterrupted
from .checkpoint import TrainerState, load_checkpoint
from .compile import compiled
from .ddp import replicated
from .pipeline import Batch, BatchPipeline
from .recorder import Keeping
from .scoring import score_split
from .step import Optimization

_REFRESH_SECONDS = 0.5


@dataclass
class _Progress:
    """Images seen in an epoch, ``before`` of them by an earlier process, and what is shown of it."""

    seen: int
    before: int
    text: str = ""
    started: float = field(default_factory=time.perf_counter)
    shown: float = field(default_factory=time.perf_counter)

    @property
    def rate(self) -> float:
        """Images per second."""
        return (self.seen - self.before) / max(time.perf_counter() - self.started, 1e-9)

    def is_due(self) -> bool:
        """Whether the text should be made anew."""
        now = time.perf_counter()
        if now - self.shown <= _REFRESH_SECONDS:
            return False
        self.shown = now
        return True


class Trainer:
    """Trains a network on one data set and keeps its state on disk and in the tracker."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        network: Network,
        optimization: Optimization,
        *,
        keeper: Keeping,
        extra: Mapping[str, Any],
    ) -> None:
        """Sets up a run.

        Args:
            config: The resolved settings.
            dataset: The images.
            network: The model on its device.
            optimization: What makes the steps of that model.
            keeper: Keeps the state, on disk and in the tracker.
            extra: Plain values that every checkpoint carries along (run id, classes, input, ...).
        """
        self.config = config
        self.dataset = dataset
        self.network = network
        self.optimization = optimization
        self.keeper = keeper
        self.extra = dict(extra)
        self.loader = BatchLoader(dataset, network.device, config.data.cache_share)
        self.pipeline = BatchPipeline(config, self.loader, network, optimization)
        self.state = TrainerState()
        self._saved_at = 0.0
        self._replica: Network | None = None
        self._is_frozen = False

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, at the very step that it was written after."""
        average = self.optimization.average
        if average is None:
            self.network.model.load_state_dict(checkpoint["model_state_dict"])
        else:
            average.module.load_state_dict(checkpoint["model_state_dict"])
            average.n_averaged.fill_(checkpoint["averaged_steps"])
            self.network.model.load_state_dict(checkpoint["trained_model_state_dict"])
        self.optimization.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        self.optimization.schedule.load_state_dict(checkpoint["scheduler_state_dict"])
        self.optimization.scaler.load_state_dict(checkpoint["scaler_state_dict"])
        self.state = TrainerState.from_checkpoint(dict(checkpoint))
        self.keeper.restore(self.state.history)

    def fit(self) -> TrainerState:
        """Trains to the last epoch, or until early stopping; the model ends with the best weights.

        Several processes do the same at the same time, each with its share of every batch.

        Raises:
            TrainingError: The loss is no number, or no epoch had a finite val AUC.
            OSError: A checkpoint could not be written.
            Stopped: A signal came; what was trained is in ``latest.pth``.
        """
        self.state.loss_sum = self.state.loss_sum.to(self.network.device)
        self._saved_at = time.monotonic()
        with self.keeper:
            try:
                while self.state.epoch < int(self.config.training.epochs) and not self._is_stale():
                    row = self._run_epoch(self.state.epoch + 1)
                    with uninterrupted():
                        self._keep_epoch(row)
            except Stopped:
                self._keep_steps()
                self.keeper.wait()
                raise
        self._load_best()
        return self.state

    def _is_stale(self) -> bool:
        patience = self.config.training.early_stopping_patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        """Trains and validates; returns the epoch's row of the history."""
        started = time.perf_counter()
        learning_rate = self.optimization.rate_before(self.state.steps)
        train_loss, rate = self._train(epoch)
        return {
            **self._validate(epoch, train_loss),
            "learning_rate": learning_rate,
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": rate,
        }

    def _train(self, epoch: int) -> tuple[float, float]:
        """One pass over the training split, or its rest; returns the mean loss and images per second."""
        order = self.pipeline.order(epoch)
        before = sum(map(len, order[: self.state.steps]))
        progress = _Progress(seen=before, before=before)
        self._thaw(epoch)
        title = f"epoch {epoch}/{self.config.training.epochs}"
        with (
            bar(title, len(order), done=self.state.steps) as advance,
            closing(self.pipeline.load(epoch, order, self.state.steps)) as batches,
        ):
            for batch in batches:
                with uninterrupted():
                    self.state.loss_sum += self._step(batch)
                    self.state.steps += 1
                progress.seen += batch.share.length
                self._report(progress, epoch)
                advance(progress.text)
                self._check()
        return self._check_finite(float(self.state.loss_sum) / progress.seen, epoch), progress.rate

    def _report(self, progress: _Progress, epoch: int) -> None:
        """Update the text behind the bar; reading the loss waits for the device, so now and then only."""
        if progress.is_due():
            mean = self._check_finite(float(self.state.loss_sum) / progress.seen, epoch)
            progress.text = f"loss {mean:.4f}  {self._best_text()}  {progress.rate:.0f} images/s"

    def _check(self) -> None:
        """Stop where a signal or an error of the background writer asks for it; save where it is time."""
        self.network.processes.check_stop()
        self.keeper.check()
        if time.monotonic() - self._saved_at > 60 * self.config.training.checkpoint_every_minutes:
            self._keep_steps()

    def _thaw(self, epoch: int) -> None:
        """Makes what the epoch trains trainable, and a replica of it where several processes train."""
        # Asked of the epoch alone, so that a run can be continued from any.
        is_frozen = epoch <= self.config.training.freeze_backbone_epochs
        train_mode(self.network.model, freeze_backbone=is_frozen)
        if self._replica is None or is_frozen != self._is_frozen:
            self._replica = None  # frees the memory of the graphs before
            self._replica = replicated(compiled(self.network, self.config.training))
            self._is_frozen = is_frozen

    def _step(self, batch: Batch) -> Tensor:
        """One optimizer step; returns the summed loss of the batch, on the device."""
        network = self._replica or self.network
        try:
            return self.optimization.step(network, batch.images, batch.targets, batch.share)
        except RuntimeError as error:
            operation, is_missing, _ = str(error).partition(" does not have a deterministic implementation")
            if not is_missing:
                raise
            raise TrainingError(
                f"{operation} has no deterministic implementation on {self.network.device.type}, and "
                f"{self.config.model.name} needs it; set training.deterministic=false"
            ) from None

    def _check_finite(self, loss: float, epoch: int) -> float:
        if not math.isfinite(loss):
            rate = float(self.config.training.learning_rate)
            raise TrainingError(
                f"the training loss became {loss} in epoch {epoch} (learning rate {rate:g}); "
                "lower training.learning_rate, or set training.precision=float32"
            )
        return loss

    def _best_text(self) -> str:
        best = self.state.best_val_auc
        return "" if best is None else f"best val AUC {best:.4f}"

    def _validate(self, epoch: int, train_loss: float) -> dict[str, float]:
        """The epoch's row of the history."""
        kept = self._kept()
        kept.processes.copy_from_first(kept.model.buffers())  # each has seen other images' statistics
        threshold, batch_size = self.config.evaluation.threshold, self.config.training.batch_size
        val = score_split(kept, self.loader, "val", threshold, batch_size)
        row = {"epoch": epoch, "train_loss": train_loss, **val.scores.named("val")}
        return row | {"val_threshold": val.scores.threshold}

    def _kept(self) -> Network:
        """What is validated, kept and served: the averaged weights where there are any."""
        average = self.optimization.average
        return self.network if average is None else replace(self.network, model=average.module)

    def _checkpoint(self) -> dict[str, Any]:
        """All that an exact continuation needs, beside config and data."""
        return {
            **self.state.state_dict(),
            "model_state_dict": self._kept().model.state_dict(),
            **self._trained_state(),
            "optimizer_state_dict": self.optimization.optimizer.state_dict(),
            "scheduler_state_dict": self.optimization.schedule.state_dict(),
            "scaler_state_dict": self.optimization.scaler.state_dict(),
            **self.extra,
        }

    def _trained_state(self) -> dict[str, Any]:
        """The weights that the next step starts from, where they are not those that are kept."""
        average = self.optimization.average
        if average is None:
            return {}
        return {
            "trained_model_state_dict": self.network.model.state_dict(),
            "averaged_steps": int(average.n_averaged),
        }

    def _keep_epoch(self, row: dict[str, float]) -> None:
        improved = self.state.record(row)
        self.keeper.keep_epoch(self._checkpoint(), improved=improved)
        self._saved_at = time.monotonic()

    def _keep_steps(self) -> None:
        """Keeps the steps of an epoch that is under way."""
        if self.state.steps:
            self.keeper.keep_steps(self._checkpoint())
        self._saved_at = time.monotonic()

    def _load_best(self) -> None:
        if self.state.best_epoch == 0:
            raise TrainingError(
                "no epoch gave a finite val AUC, so there is no best model; lower training.learning_rate"
            )
        model, best = self.network.model, self.keeper.best
        if best is not None:
            model.load_state_dict(load_checkpoint(best)["model_state_dict"])
        self.network.processes.copy_from_first(model.state_dict().values())
