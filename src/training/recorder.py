"""What training leaves, on disk and in the tracker, written beside the loop."""

import copy
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..utils.background import Background
from ..utils.io import atomic_write_text
from ..utils.threads import at_most_threads
from .checkpoint import CheckpointStore, TrainerState

Row = Mapping[str, float]


class Tracker(Protocol):
    """What is needed from whatever keeps the record of a run; called from one thread at a time."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Records settings; each key once."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records all metrics of one epoch in one call; a resumed run keeps what it has at that step."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keeps a file with the run."""

    def finish(self, status: str, message: str | None = None) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""


class Keeping(Protocol):
    """What the trainer needs from whatever keeps its state."""

    @property
    def best(self) -> Path | None:
        """Where the best checkpoint is; None where another process has it."""

    def check(self) -> None:
        """Raises what went wrong since the last call."""

    def wait(self) -> None:
        """Returns once everything is kept."""

    def keep_epoch(self, checkpoint: Mapping[str, Any], *, improved: bool) -> None:
        """Keeps the state after an epoch, the last of its history; ``improved``: it is the best so far."""

    def keep_steps(self, checkpoint: Mapping[str, Any]) -> None:
        """Keeps the state within an epoch."""

    def restore(self, history: Sequence[dict[str, float]]) -> None:
        """Takes up the epochs of an earlier process."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NoKeeper:
    """Keeps nothing: of several processes that train together, all but the first."""

    best = None

    def check(self) -> None:
        """Nothing goes wrong."""

    wait = check

    def keep_epoch(self, checkpoint: Mapping[str, Any], *, improved: bool) -> None:
        """The first process does."""

    def keep_steps(self, checkpoint: Mapping[str, Any]) -> None:
        """The first process does."""

    def restore(self, history: Sequence[dict[str, float]]) -> None:
        """The first process does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Keeper:
    """Keeps the state after an epoch or within one; used as a context, whose end waits for the last.

    Training goes on from a snapshot's end while it is written. All that follows an epoch is written in one
    order, each thing once, and before anything of the next: a process may die at any point of it.
    """

    def __init__(
        self, checkpoints: CheckpointStore, history_path: Path, tracker: Tracker, *, beside: bool
    ) -> None:
        """Sets up what keeps one run.

        Args:
            checkpoints: Where checkpoints go.
            history_path: Where the table of epochs goes.
            tracker: Keeps the record.
            beside: Whether training goes on meanwhile; it changes no result.
        """
        self.checkpoints = checkpoints
        self.history_path = history_path
        self.tracker = tracker
        self._background = Background(enabled=beside)
        self._snapshot = Snapshot()

    @property
    def best(self) -> Path:
        """Where the best checkpoint is."""
        return self.checkpoints.best

    def check(self) -> None:
        """Raises what went wrong since the last call."""
        self._background.check()

    def wait(self) -> None:
        """Returns once everything is kept."""
        self._background.wait()

    def keep_epoch(self, checkpoint: Mapping[str, Any], *, improved: bool) -> None:
        """Keeps the state after an epoch, the last of its history; ``improved``: it is the best so far.

        Raises:
            OSError: This, or what was to be kept before, could not be written.
        """
        self.wait()  # for it uses the snapshot's memory
        snapshot = self._snapshot.take(checkpoint)
        self._background.start(lambda: self._write_epoch(snapshot, improved))

    def keep_steps(self, checkpoint: Mapping[str, Any]) -> None:
        """Keeps the state within an epoch."""
        self.wait()
        snapshot = self._snapshot.take(checkpoint)
        self._background.start(lambda: self._write_steps(snapshot))

    def restore(self, history: Sequence[dict[str, float]]) -> None:
        """Tells all epochs again: a process that died after a checkpoint may not have told its epoch."""
        write_history(self.history_path, history)
        so_far = TrainerState()
        for row in history:
            self._log_row(row, so_far.record(row))

    def _write_epoch(self, snapshot: dict[str, Any], improved: bool) -> None:
        self.checkpoints.save(snapshot, is_best=improved)
        write_history(self.history_path, snapshot["history"])
        self._log_row(snapshot["history"][-1], improved)
        # After each epoch, so that whatever ends the run, its files are with its metrics.
        self.tracker.log_artifact(self.history_path)
        self._log_checkpoint(self.checkpoints.latest)
        if improved:
            self._log_checkpoint(self.checkpoints.best)

    def _write_steps(self, snapshot: dict[str, Any]) -> None:
        self.checkpoints.save(snapshot, is_best=False)
        self._log_checkpoint(self.checkpoints.latest)

    def _log_checkpoint(self, path: Path) -> None:
        self.tracker.log_artifact(path, self.checkpoints.folder.name)

    def _log_row(self, row: Row, improved: bool) -> None:
        metrics = {name: value for name, value in row.items() if name != "epoch"}
        if improved:
            metrics["best_val_auc"] = metrics["val_auc"]
        self.tracker.log_metrics(metrics, step=int(row["epoch"]))

    def __enter__(self) -> Self:
        self._background.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._background.__exit__(kind, error, trace)


Place = tuple[object, ...]


class Snapshot:
    """Copies states into main memory that is kept from one to the next, so that a copy takes milliseconds."""

    def __init__(self) -> None:
        self._kept: dict[Place, Tensor] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a copy of nested mappings and lists of tensors and plain values.

        It shares its memory with the copy before, which must not be used any more. Tensors keep their
        strides and land on the CPU.
        """
        # Many short copies: with several threads each would wait for whatever else uses a core.
        with at_most_threads(1):
            copied: dict[str, Any] = self._copy(state, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies from a GPU have only been asked for until here
        return copied

    def _copy(self, value: Any, place: Place) -> Any:  # noqa: ANN401 -- whatever a state may hold
        if isinstance(value, Tensor):
            return self._memory(value, place).copy_(value, non_blocking=True)
        if isinstance(value, dict | list):
            result = copy.copy(value)  # of the same type, with its attributes (the versions of a state dict)
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                result[key] = self._copy(item, (*place, key))
            return result
        return value

    def _memory(self, like: Tensor, place: Place) -> Tensor:
        kept = self._kept.get(place)
        if kept is None or kept.shape != like.shape or kept.dtype != like.dtype:
            # Pinned, a copy from a GPU runs at the full speed of the bus.
            kept = torch.empty_like(like, device="cpu", pin_memory=like.is_cuda)
            self._kept[place] = kept
        return kept


METRICS = ("train_loss", "val_loss", "val_acc", "val_auc", "val_sensitivity", "val_specificity")
COLUMNS = ("epoch", *METRICS)


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes all epochs so far, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([int(row["epoch"]), *(repr(float(row[name])) for name in METRICS)] for row in history)
    atomic_write_text(path, buffer.getvalue())
