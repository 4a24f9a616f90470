"""Checkpoints: one typed state, whole files only, nothing pickled but tensors and plain values."""

import errno
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import DataError
from ..evaluation.auc import is_better
from ..utils.io import atomic_file, atomic_link, open_regular
from ..utils.zip_layout import check_layout

LATEST = "latest.pth"
PREVIOUS = "latest.prev.pth"
BEST = "best_model.pth"


@dataclass
class TrainerState:
    """What must survive a crash, beside the tensors.

    Attributes:
        epoch: Epochs that are complete.
        steps: Optimizer steps of the epoch after that; its batches up to there are not seen again.
        loss_sum: Summed training loss over these steps.
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

    def record(self, row: dict[str, float]) -> bool:
        """Appends one finished epoch; True where its val AUC is the best so far."""
        self.history.append(row)
        self.epoch, self.steps, self.loss_sum = int(row["epoch"]), 0, torch.zeros_like(self.loss_sum)
        improved = is_better(row["val_auc"], self.best_val_auc)
        if improved:
            self.best_val_auc, self.best_epoch = row["val_auc"], self.epoch
        return improved

    def state_dict(self) -> dict[str, Any]:
        """One key per attribute, plain values."""
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "loss_sum": float(self.loss_sum),  # a float32, which a Python float holds exactly
            "best_val_auc": self.best_val_auc,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any]) -> "TrainerState":
        """The state that a checkpoint holds."""
        return cls(
            checkpoint["epoch"],
            checkpoint["steps"],
            torch.tensor(checkpoint["loss_sum"], dtype=torch.float32),
            checkpoint["best_val_auc"],
            checkpoint["best_epoch"],
            checkpoint["history"],
        )


@dataclass(frozen=True)
class CheckpointStore:
    """``latest.pth``, the one before it, and ``best_model.pth`` in one folder."""

    folder: Path

    @property
    def latest(self) -> Path:
        """Written after every epoch."""
        return self.folder / LATEST

    @property
    def previous(self) -> Path:
        """What ``latest`` was before it was written last, in case that is damaged."""
        return self.folder / PREVIOUS

    @property
    def best(self) -> Path:
        """The epoch with the best val AUC; shares its bytes with ``latest`` until the next epoch."""
        return self.folder / BEST

    def save(self, checkpoint: dict[str, Any], *, is_best: bool) -> None:
        """Writes ``latest`` and, where ``is_best``, makes ``best`` the same file.

        Raises:
            OSError: Nothing could be written; the files are as they were.
        """
        if not self.folder.parent.is_dir():
            # Made anew it would hide that the best checkpoint so far is gone with the rest.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder.parent))
        with atomic_file(self.latest) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # On a full disk torch's zip writer trips over the failed write and hides it.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            if self.latest.exists():
                atomic_link(self.latest, self.previous)
        if is_best:
            atomic_link(self.latest, self.best)

    def load_latest(self) -> tuple[dict[str, Any], str | None]:
        """The newest checkpoint that can be read, and why that is not ``latest``, None where it is.

        A process that died between the two steps of `save` has left an older ``best``; it is mended.

        Raises:
            DataError: There is none.
        """
        warning = None
        try:
            checkpoint, source = load_checkpoint(self.latest), self.latest
        except DataError as error:
            checkpoint, source = load_checkpoint(self.previous), self.previous
            warning = f"{error}; going on from {self.previous.name}, epoch {checkpoint['epoch']}"
        if checkpoint["best_epoch"] == checkpoint["epoch"] > 0 and checkpoint["steps"] == 0:
            atomic_link(source, self.best)
        return checkpoint, warning


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint: tensors and plain values only.

    Raises:
        DataError: The file is missing, damaged, or holds anything that would have to be executed.
    """
    try:
        with open_regular(path) as file:  # once, so that what was checked is what is loaded
            _check_sums(file)
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile file raises errors of a dozen kinds
        why = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            why = "it holds more than tensors and plain values, and nothing in it was run"
        raise DataError(f"{path}: not a checkpoint that can be opened: {why}") from None
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise DataError(f"{path}: holds no model_state_dict, so it is no checkpoint of a run")
    return checkpoint


def _check_sums(file: IO[bytes]) -> None:
    """Raise ValueError where a byte has changed since the file was written, which torch does not check."""
    try:
        with zipfile.ZipFile(file) as archive:
            check_layout(file, archive)
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")


def run_of_checkpoint(path: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint, None where it does not say; no tensor is read."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(checkpoint["run_id"])
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        return None
