"""The val AUC of the best of many runs, corrected for having been chosen by it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..evaluation.auc import corrected_auc
from ..evaluation.predictions import Predictions, read_predictions
from ..tracking.candidates import Candidate
from ..tracking.finished_run import fetch_of
from .evidence import gives, saw_the_same
from .history import Entry
from .judge import rank

_MOST = 100  # runs whose predictions are read: the best, so that a promotion takes no longer with 10,000


@dataclass(frozen=True)
class Correction:
    """What is to be expected of a run that was chosen by its val AUC.

    Attributes:
        auc: Its val AUC, corrected.
        among: How many runs it was chosen among.
        used: How many of these the correction is made of: the best 100 whose predictions are stored.
    """

    auc: float
    among: int
    used: int

    def __str__(self) -> str:
        """For a table."""
        used = "" if self.used == self.among else f" ({self.used} used)"
        return f"{self.auc:.4f} corrected, best of {self.among}{used}"


def correction_of(entry: Entry | None) -> Correction | None:
    """Return what a promotion has recorded; None where it was not, as in earlier versions."""
    if entry is None or entry.val_auc_corrected is None:
        return None
    return Correction(entry.val_auc_corrected, entry.chosen_among or 1, entry.corrected_with or 1)


def correct(best: Candidate, competitors: Sequence[Candidate], folder: Path) -> Correction | None:
    """Correct a run's val AUC for the choice among the runs that competed, itself included.

    Args:
        best: The run that was chosen.
        competitors: All that it was chosen among.
        folder: For files of a store that is no local folder.

    Returns:
        The correction; None where there was a choice and the run's own predictions are gone, or no other
        run's are there, or they are too few to draw from.
    """
    if len(competitors) == 1:
        return Correction(best.val_auc, 1, 1)
    others = [run for run in rank(competitors) if run.run_id != best.run_id]
    # By age: of equals the earlier run wins, and no order by AUC may decide within a draw.
    runs = sorted([best, *others[: _MOST - 1]], key=lambda run: (run.start_time, run.run_id))
    tables = _read(runs, folder)
    own = tables.get(best.run_id)
    if own is None:
        return None
    same = [table for table in tables.values() if saw_the_same(own, table)]
    if len(same) == 1:
        return None
    value = corrected_auc(own.labels, [table.probabilities for table in same], own.patients)
    return None if math.isnan(value) else Correction(value, len(competitors), len(same))


def _read(runs: Sequence[Candidate], folder: Path) -> dict[str, Predictions]:
    """Return each run's validation predictions where they are there, whole, and give its val AUC."""
    tables: dict[str, Predictions] = {}
    for run, path in zip(runs, fetch_of(runs, "predictions/val.csv", folder), strict=True):
        try:
            found = None if path is None else read_predictions(path)
        except DataError:
            continue
        if found is not None and gives(found, run.val_auc):
            tables[run.run_id] = found
    return tables
