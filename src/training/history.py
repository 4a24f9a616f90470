"""``training_history.csv``: seven columns, one row per epoch, numbers in full precision."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..utils.io import atomic_write_text

METRICS = ("train_loss", "val_loss", "val_acc", "val_auc", "val_sensitivity", "val_specificity")
COLUMNS = ("epoch", *METRICS)


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes all epochs so far, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([int(row["epoch"]), *(repr(float(row[name])) for name in METRICS)] for row in history)
    atomic_write_text(path, buffer.getvalue())
