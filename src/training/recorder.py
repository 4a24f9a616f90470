"""Save checkpoints, history and metrics of a training, in the background."""

import copy
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..evaluation.metric_names import TRAIN_LOSS, VAL_ACC, VAL_AUC, VAL_LOSS, VAL_SENSITIVITY, VAL_SPECIFICITY
from ..utils.background import Background, at_most_threads
from ..utils.io import atomic_write_text
from .checkpoint import CheckpointStore, TrainerState

EpochMetrics = Mapping[str, float]


@dataclass(frozen=True)
class EpochMetric:
    """A value that every epoch has.

    Attributes:
        name: Name of the metric.
        in_csv: Whether it is a column of ``training_history.csv``.
        best: When ``best_{name}`` is logged with its value of the best epoch; None if never.
        is_timing: Whether it depends on the clock, so that two equal runs differ in it.
    """

    name: str
    in_csv: bool = False
    best: Literal["when reached", "at the end"] | None = None
    is_timing: bool = False


EPOCH_METRICS = (
    EpochMetric(TRAIN_LOSS, in_csv=True),
    EpochMetric(VAL_LOSS, in_csv=True, best="at the end"),
    EpochMetric(VAL_ACC, in_csv=True, best="at the end"),
    EpochMetric(VAL_AUC, in_csv=True, best="when reached"),
    EpochMetric(VAL_SENSITIVITY, in_csv=True, best="at the end"),
    EpochMetric(VAL_SPECIFICITY, in_csv=True, best="at the end"),
    EpochMetric("val_threshold"),
    EpochMetric("learning_rate"),
    EpochMetric("epoch_seconds", is_timing=True),
    EpochMetric("images_per_second", is_timing=True),
)
"""The values of an epoch, logged to the tracker and kept in the checkpoint's history."""
COLUMNS = ("epoch", *(metric.name for metric in EPOCH_METRICS if metric.in_csv))
"""Columns of ``training_history.csv``."""
TIMING_METRICS = frozenset(metric.name for metric in EPOCH_METRICS if metric.is_timing)
"""Names of the metrics that depend on the clock."""


def write_history(path: Path, history: Sequence[EpochMetrics]) -> None:
    """Write ``training_history.csv`` atomically: one row per epoch, numbers in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for metrics in history:
        writer.writerow([int(metrics["epoch"]), *(repr(float(metrics[name])) for name in COLUMNS[1:])])
    atomic_write_text(path, buffer.getvalue())


class Tracker(Protocol):
    """The tracker methods that the recorder calls, from one thread at a time."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics of one epoch in one call; a resumed run keeps the values it has at that step."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file with the run."""


class StateRecorder(Background):
    """Recorder that saves nothing, for all ranks but the main one; base class of `Recorder`.

    As a context manager, it waits for the last write at the end.
    """

    best: Path | None = None
    """Path of the best checkpoint; None if another rank has it."""

    def save_epoch(self, checkpoint: Mapping[str, Any], metrics: EpochMetrics, *, improved: bool) -> None:
        """Save the state after an epoch with these metrics; ``improved``: it is the best so far."""

    def save_mid_epoch(self, checkpoint: Mapping[str, Any]) -> None:
        """Save the state within an epoch."""

    def restore(self, history: Sequence[dict[str, float]]) -> None:
        """Write and log the epochs of an earlier process again."""


class Recorder(StateRecorder):
    """Recorder that saves the state after or within an epoch.

    Training continues as soon as a snapshot of the state is taken. Everything that follows an epoch is
    written once, in a fixed order and before anything of the next epoch: the process may be killed at any
    point of it.
    """

    def __init__(
        self, checkpoints: CheckpointStore, history_path: Path, tracker: Tracker, *, in_background: bool
    ) -> None:
        """Create the recorder of one run.

        Args:
            checkpoints: Store of the checkpoints.
            history_path: Path of ``training_history.csv``.
            tracker: Tracker of the run.
            in_background: Whether training continues while files are written; no result depends on it.
        """
        super().__init__(enabled=in_background)
        self.checkpoints = checkpoints
        self.history_path = history_path
        self.tracker = tracker
        self._snapshot = Snapshot()
        self.best = checkpoints.best

    def save_epoch(self, checkpoint: Mapping[str, Any], metrics: EpochMetrics, *, improved: bool) -> None:
        """Save the state after an epoch with these metrics; ``improved``: it is the best so far.

        Raises:
            OSError: This state, or an earlier one, could not be written.
        """
        self.wait()  # the write before uses the memory of the snapshot
        snapshot = self._snapshot.take(checkpoint)
        self.start(lambda: self._write_epoch(snapshot, metrics, improved))

    def save_mid_epoch(self, checkpoint: Mapping[str, Any]) -> None:
        """Save the state within an epoch."""
        self.wait()
        snapshot = self._snapshot.take(checkpoint)
        self.start(lambda: self._write_checkpoint(snapshot))

    def restore(self, history: Sequence[dict[str, float]]) -> None:
        """Write and log all epochs again: the killed process may not have logged the last one."""
        write_history(self.history_path, history)
        so_far = TrainerState()
        for metrics in history:
            self._log_metrics(metrics, so_far.record(metrics))

    def _write_epoch(self, snapshot: dict[str, Any], metrics: EpochMetrics, improved: bool) -> None:
        self.checkpoints.save(snapshot, is_best=improved)
        write_history(self.history_path, snapshot["history"])
        self._log_metrics(metrics, improved)
        # After each epoch, so that the run has its files however it ends.
        self.tracker.log_artifact(self.history_path)
        self._log_checkpoint(self.checkpoints.latest)
        if improved:
            self._log_checkpoint(self.checkpoints.best)

    def _write_checkpoint(self, snapshot: dict[str, Any]) -> None:
        self.checkpoints.save(snapshot, is_best=False)
        self._log_checkpoint(self.checkpoints.latest)

    def _log_checkpoint(self, path: Path) -> None:
        self.tracker.log_artifact(path, self.checkpoints.folder.name)

    def _log_metrics(self, metrics: EpochMetrics, improved: bool) -> None:
        logged = {name: value for name, value in metrics.items() if name != "epoch"}
        if improved:
            when_reached = [metric.name for metric in EPOCH_METRICS if metric.best == "when reached"]
            logged |= {f"best_{name}": metrics[name] for name in when_reached}
        self.tracker.log_metrics(logged, step=int(metrics["epoch"]))


class Snapshot:
    """Copy states into CPU memory that is reused for the next copy, so that a copy takes milliseconds."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of nested mappings and lists of tensors and plain values.

        The previous copy becomes invalid, because its memory is reused. Tensors are on the CPU and keep their
        strides.
        """
        # Many short copies: with several threads, each would wait for other users of a core.
        with at_most_threads(1):
            copied: dict[str, Any] = self._copy(state, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies from a GPU are asynchronous up to here
        return copied

    def _copy(self, value: Any, path: tuple[object, ...]) -> Any:  # noqa: ANN401 -- any value of a state
        if isinstance(value, Tensor):
            return self._buffer(value, path).copy_(value, non_blocking=True)
        if isinstance(value, dict | list):
            result = copy.copy(value)  # of the same type, with its attributes (the versions of a state dict)
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                result[key] = self._copy(item, (*path, key))
            return result
        return value

    def _buffer(self, like: Tensor, path: tuple[object, ...]) -> Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            # Pinned memory, so that a copy from a GPU runs at full bus speed.
            buffer = torch.empty_like(like, device="cpu", pin_memory=like.is_cuda)
            self._buffers[path] = buffer
        return buffer
