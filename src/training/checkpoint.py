"""Checkpoints: one typed state, whole files only, nothing pickled but tensors and plain values."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from src.errors import DataError
from src.training.auc import is_better
from src.utils.io import atomic_file, atomic_link

LATEST = "latest.pth"
BEST = "best_model.pth"


@dataclass
class TrainerState:
    """What must survive a crash, beside the tensors.

    Attributes:
        epoch: Epochs that are complete.
        best_val_auc: Highest finite val AUC so far, None before there is one.
        best_epoch: Its epoch, 0 before there is one.
        history: One row per epoch, in order: ``epoch`` and the metrics.
    """

    epoch: int = 0
    best_val_auc: float | None = None
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def record(self, row: dict[str, float]) -> bool:
        """Appends one finished epoch; True where its val AUC is the best so far."""
        self.history.append(row)
        self.epoch = int(row["epoch"])
        improved = is_better(row["val_auc"], self.best_val_auc)
        if improved:
            self.best_val_auc, self.best_epoch = row["val_auc"], self.epoch
        return improved

    def state_dict(self) -> dict[str, Any]:
        """One key per attribute."""
        return {
            "epoch": self.epoch,
            "best_val_auc": self.best_val_auc,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }


@dataclass(frozen=True)
class CheckpointStore:
    """``latest.pth`` and ``best_model.pth`` in one folder."""

    folder: Path

    @property
    def latest(self) -> Path:
        """Written after every epoch."""
        return self.folder / LATEST

    @property
    def best(self) -> Path:
        """The epoch with the best val AUC; shares its bytes with ``latest`` until the next epoch."""
        return self.folder / BEST

    def save(self, checkpoint: dict[str, Any], *, is_best: bool) -> None:
        """Writes ``latest`` and, where ``is_best``, makes ``best`` the same file.

        Raises:
            OSError: Nothing could be written; both files are as they were.
        """
        with atomic_file(self.latest) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # On a full disk torch's zip writer trips over the failed write and hides it.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        if is_best:
            atomic_link(self.latest, self.best)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Opens a checkpoint: tensors and plain values only.

    Raises:
        DataError: The file is missing, damaged, or holds anything that would have to be executed.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path}: not a checkpoint that can be opened: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise DataError(f"{path}: holds no model_state_dict, so it is no checkpoint of a run")
    return checkpoint
