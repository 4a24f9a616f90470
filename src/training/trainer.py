"""The training loop."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..data.batches import BatchLoader
from ..data.dataset import Dataset
from ..errors import TrainingError
from ..evaluation.metric_names import TRAIN_LOSS
from ..models.forward import ModelContext, train_mode
from ..utils.config import Config
from ..utils.console import bar
from ..utils.runtime import Stopped, uninterrupted
from .checkpoint import TrainerState, load_checkpoint
from .compile import compiled
from .ddp import wrap_ddp
from .pipeline import Batch, BatchPipeline
from .recorder import StateRecorder
from .scoring import score_split
from .step import TrainStep

_REFRESH_SECONDS = 0.5


@dataclass
class _Progress:
    """Images seen in an epoch, ``before`` of them by an earlier process, and the text behind the bar."""

    seen: int
    before: int
    text: str = ""
    started: float = field(default_factory=time.perf_counter)
    shown: float = field(default_factory=time.perf_counter)

    @property
    def images_per_second(self) -> float:
        """Return the training speed of this process."""
        return (self.seen - self.before) / max(time.perf_counter() - self.started, 1e-9)


class Trainer:
    """Train a model on one dataset and record its state."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        context: ModelContext,
        train_step: TrainStep,
        *,
        recorder: StateRecorder,
        extra: Mapping[str, Any],
    ) -> None:
        """Set up a training with resolved settings.

        ``extra`` are plain values that every checkpoint contains (run id, classes, input, ...).
        """
        self.config = config
        self.context = context
        self.train_step = train_step
        self.recorder = recorder
        self.extra = dict(extra)
        self.loader = BatchLoader(dataset, context.device, config.data.cache_share)
        self.pipeline = BatchPipeline(config, self.loader, context, train_step)
        self.state = TrainerState()
        self._saved_at = 0.0
        self._wrapped: ModelContext | None = None
        self._is_frozen = False

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint; training continues with the next step."""
        step = self.train_step
        self._eval_context().model.load_state_dict(checkpoint["model_state_dict"])
        if step.ema is not None:
            step.ema.n_averaged.fill_(checkpoint["averaged_steps"])
            self.context.model.load_state_dict(checkpoint["trained_model_state_dict"])
        step.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        step.schedule.load_state_dict(checkpoint["scheduler_state_dict"])
        step.scaler.load_state_dict(checkpoint["scaler_state_dict"])
        self.state = TrainerState.from_checkpoint(dict(checkpoint))
        self.recorder.restore(self.state.history)

    def fit(self) -> TrainerState:
        """Train to the last epoch or until early stopping; the model ends with the best weights.

        In a distributed training all ranks call this at the same time; each processes its part of every
        batch.

        Raises:
            TrainingError: The loss is not finite, or no epoch had a finite val AUC.
            OSError: A checkpoint could not be written.
            Stopped: A stop signal arrived; the state is in ``latest.pth``.
        """
        self.state.loss_sum = self.state.loss_sum.to(self.context.device)
        self._saved_at = time.monotonic()
        with self.recorder:
            try:
                while self.state.epoch < int(self.config.training.epochs) and not self._should_stop_early():
                    metrics = self._run_epoch(self.state.epoch + 1)
                    with uninterrupted():
                        self._save_epoch(metrics)
            except Stopped:
                self._save_mid_epoch()
                self.recorder.wait()
                raise
        self._load_best()
        return self.state

    def _should_stop_early(self) -> bool:
        patience = self.config.training.early_stopping_patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        """Train and validate; return the epoch and its `recorder.EPOCH_METRICS`."""
        started = time.perf_counter()
        learning_rate = self.train_step.learning_rate_at(self.state.steps)
        train_loss, images_per_second = self._train(epoch)
        return {
            **self._validate(epoch, train_loss),
            "learning_rate": learning_rate,
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": images_per_second,
        }

    def _train(self, epoch: int) -> tuple[float, float]:
        """Train on the remaining batches of an epoch; return the mean loss and the images per second."""
        order = self.pipeline.order(epoch)
        before = sum(map(len, order[: self.state.steps]))
        progress = _Progress(seen=before, before=before)
        self._prepare_model(epoch)
        title = f"epoch {epoch}/{self.config.training.epochs}"
        with (
            bar(title, len(order), done=self.state.steps) as advance,
            closing(self.pipeline.load(epoch, order, self.state.steps)) as batches,
        ):
            for batch in batches:
                with uninterrupted():
                    self.state.loss_sum += self._step(batch)
                    self.state.steps += 1
                progress.seen += batch.shard.batch_length
                self._report(progress, epoch)
                advance(progress.text)
                self._stop_or_save_if_due()
        return self._finite_mean_loss(progress, epoch), progress.images_per_second

    def _report(self, progress: _Progress, epoch: int) -> None:
        """Update the text behind the bar, but not at every step: reading the loss waits for the device."""
        if time.perf_counter() - progress.shown > _REFRESH_SECONDS:
            progress.shown = time.perf_counter()
            best = self.state.best_val_auc
            best_text = "" if best is None else f"best val AUC {best:.4f}"
            mean = self._finite_mean_loss(progress, epoch)
            progress.text = f"loss {mean:.4f}  {best_text}  {progress.images_per_second:.0f} images/s"

    def _stop_or_save_if_due(self) -> None:
        """Stop on a signal or an error of the background writer; save a checkpoint if one is due."""
        self.context.process_group.check_stop()
        self.recorder.check()
        if time.monotonic() - self._saved_at > 60 * self.config.training.checkpoint_every_minutes:
            self._save_mid_epoch()

    def _prepare_model(self, epoch: int) -> None:
        """Set what is trainable in this epoch, and wrap the model again if that has changed."""
        # Depends on the epoch alone, so that a run can be resumed from any epoch.
        is_frozen = epoch <= self.config.training.freeze_backbone_epochs
        train_mode(self.context.model, freeze_backbone=is_frozen)
        if self._wrapped is None or is_frozen != self._is_frozen:
            self._wrapped = None  # frees the memory of the previous CUDA graphs
            self._wrapped = wrap_ddp(compiled(self.context, self.config.training))
            self._is_frozen = is_frozen

    def _step(self, batch: Batch) -> Tensor:
        """Run one optimizer step; return the summed loss of the batch, on the device."""
        context = self._wrapped or self.context
        try:
            return self.train_step.step(context, batch.images, batch.targets, batch.shard)
        except RuntimeError as error:
            operation, is_missing, _ = str(error).partition(" does not have a deterministic implementation")
            if not is_missing:
                raise
            raise TrainingError(
                f"{operation} has no deterministic implementation on {self.context.device.type}, and "
                f"{self.config.model.name} needs it; set training.deterministic=false"
            ) from None

    def _finite_mean_loss(self, progress: _Progress, epoch: int) -> float:
        loss = float(self.state.loss_sum) / progress.seen
        if not math.isfinite(loss):
            rate = float(self.config.training.learning_rate)
            raise TrainingError(
                f"the training loss became {loss} in epoch {epoch} (learning rate {rate:g}); "
                "lower training.learning_rate, or set training.precision=float32"
            )
        return loss

    def _validate(self, epoch: int, train_loss: float) -> dict[str, float]:
        context = self._eval_context()
        context.process_group.broadcast_tensors(context.model.buffers())  # batch-norm statistics differ
        threshold, batch_size = self.config.evaluation.threshold, self.config.training.batch_size
        scores = score_split(context, self.loader, "val", threshold, batch_size).scores
        metrics = {"epoch": epoch, TRAIN_LOSS: train_loss, **scores.named("val")}
        return metrics | {"val_threshold": scores.threshold}

    def _eval_context(self) -> ModelContext:
        """Return the context with the model that is validated, saved and served: the EMA if there is one."""
        ema = self.train_step.ema
        return self.context if ema is None else replace(self.context, model=ema.module)

    def _checkpoint(self) -> dict[str, Any]:
        """Return everything except the data that is needed to resume exactly."""
        step, trained = self.train_step, dict[str, Any]()
        if step.ema is not None:  # the weights that the optimizer updates are not those that are validated
            trained["trained_model_state_dict"] = self.context.model.state_dict()
            trained["averaged_steps"] = int(step.ema.n_averaged)
        return {
            **self.state.state_dict(),
            "model_state_dict": self._eval_context().model.state_dict(),
            **trained,
            "optimizer_state_dict": step.optimizer.state_dict(),
            "scheduler_state_dict": step.schedule.state_dict(),
            "scaler_state_dict": step.scaler.state_dict(),
            **self.extra,
        }

    def _save_epoch(self, metrics: dict[str, float]) -> None:
        improved = self.state.record(metrics)
        self.recorder.save_epoch(self._checkpoint(), metrics, improved=improved)
        self._saved_at = time.monotonic()

    def _save_mid_epoch(self) -> None:
        if self.state.steps:
            self.recorder.save_mid_epoch(self._checkpoint())
        self._saved_at = time.monotonic()

    def _load_best(self) -> None:
        if self.state.best_epoch == 0:
            raise TrainingError(
                "no epoch had a finite val AUC, so no model is the best; lower training.learning_rate"
            )
        model, best = self.context.model, self.recorder.best
        if best is not None:
            model.load_state_dict(load_checkpoint(best)["model_state_dict"])
        self.context.process_group.broadcast_tensors(model.state_dict().values())
