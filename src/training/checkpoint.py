"""Checkpoints: a typed state, atomic writes, and files with tensors and plain values only."""

import errno
import os
import pickle
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import DataError
from ..evaluation.auc import is_better
from ..evaluation.metric_names import BEST_EPOCH, VAL_AUC
from ..utils.io import atomic_file, atomic_link, open_regular
from ..utils.zip_check import check_layout


@dataclass
class TrainerState:
    """The state of a training, apart from the tensors.

    Attributes:
        epoch: Number of complete epochs.
        steps: Number of optimizer steps in the epoch after that; a resumed run skips their batches.
        loss_sum: Training loss summed over these steps.
        best_val_auc: Highest finite val AUC so far, None before there is one.
        best_epoch: Its epoch, 0 before there is one.
        history: One row per epoch, in order: ``epoch`` and the metrics.
    """

    epoch: int = 0
    steps: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    best_val_auc: float | None = None
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def record(self, epoch_metrics: dict[str, float]) -> bool:
        """Append the metrics of a finished epoch; return whether its val AUC is the best so far."""
        self.history.append(epoch_metrics)
        self.epoch, self.steps = int(epoch_metrics["epoch"]), 0
        self.loss_sum = torch.zeros_like(self.loss_sum)
        val_auc = epoch_metrics[VAL_AUC]
        improved = is_better(val_auc, self.best_val_auc)
        if improved:
            self.best_val_auc, self.best_epoch = val_auc, self.epoch
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values."""
        return {**vars(self), "loss_sum": float(self.loss_sum)}  # a float32, which a float holds exactly

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any]) -> "TrainerState":
        """Return the state in a checkpoint."""
        values = {attribute.name: checkpoint[attribute.name] for attribute in fields(cls)}
        return cls(**values | {"loss_sum": torch.tensor(values["loss_sum"], dtype=torch.float32)})


@dataclass(frozen=True)
class CheckpointStore:
    """The files ``latest.pth``, ``latest.prev.pth`` and ``best_model.pth`` in one folder."""

    folder: Path

    @property
    def latest(self) -> Path:
        """Path of the checkpoint that is written after every epoch."""
        return self.folder / "latest.pth"

    @property
    def previous(self) -> Path:
        """Path of the previous ``latest``, in case that is damaged."""
        return self.folder / "latest.prev.pth"

    @property
    def best(self) -> Path:
        """Path of the epoch with the best val AUC; a hard link to ``latest`` until the next epoch."""
        return self.folder / "best_model.pth"

    def save(self, checkpoint: dict[str, Any], *, is_best: bool) -> None:
        """Write ``latest`` and, if ``is_best``, make ``best`` the same file.

        Raises:
            OSError: Writing failed; the files are unchanged.
        """
        if not self.folder.parent.is_dir():
            # Creating it again would hide that the best checkpoint is gone with the folder.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder.parent))
        with atomic_file(self.latest) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # On a full disk, torch's zip writer hides the failed write behind its own error.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            if self.latest.exists():
                atomic_link(self.latest, self.previous)
        if is_best:
            atomic_link(self.latest, self.best)

    def load_latest(self) -> tuple[dict[str, Any], str | None]:
        """Return the newest readable checkpoint, and a warning if it is not ``latest``.

        If the process was killed between the two steps of `save`, ``best`` is updated here.

        Raises:
            DataError: No checkpoint is readable.
        """
        warning = None
        try:
            checkpoint, source = load_checkpoint(self.latest), self.latest
        except DataError as error:
            checkpoint, source = load_checkpoint(self.previous), self.previous
            warning = f"{error}; continuing from {self.previous.name}, epoch {checkpoint['epoch']}"
        if checkpoint[BEST_EPOCH] == checkpoint["epoch"] > 0 and checkpoint["steps"] == 0:
            atomic_link(source, self.best)
        return checkpoint, warning


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint with tensors and plain values only.

    Raises:
        DataError: The file is missing, damaged, or contains code.
    """
    try:
        with open_regular(path) as file:  # opened once, so that the checked file is the loaded one
            _check_sums(file)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged and malicious files raise many kinds of errors
        why = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            why = "it contains objects other than tensors and plain values; no code in it was run"
        raise DataError(f"{path}: not a checkpoint that can be opened: {why}") from None
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise DataError(f"{path}: contains no model_state_dict, so it is not a checkpoint of a run")
    return checkpoint


def _check_sums(file: IO[bytes]) -> None:
    """Raise ValueError if a byte has changed since the file was written; torch does not check this."""
    try:
        with zipfile.ZipFile(file) as archive:
            check_layout(file, archive)
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")


def run_of_checkpoint(path: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint, None if it has none; no tensor is read."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(checkpoint["run_id"])
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        return None
