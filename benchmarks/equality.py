"""Losses and AUC of the same training in 1, 2 and 4 processes on CPUs, beside each other.

python -m benchmarks.equality [--processes 1,2,4]

Float32, the same global batches and seed; the trainings are those of tests/training/test_together.py.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import show
from tests.training.test_together import EQUAL, run

_METRICS = ("train_loss", "val_loss", "val_auc")


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.equality", description=__doc__)
    parser.add_argument("--processes", default="1,2,4")
    counts = [int(count) for count in parser.parse_args().processes.split(",")]
    found: dict[int, dict[str, Any]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="equality-") as folder:
            found[count] = run(Path(folder), count, EQUAL, resume=False)[0]
    rows = []
    for name in EQUAL:
        last = {count: found[count][name]["whole"]["history"][-1] for count in counts}
        for count, row in last.items():
            shown = [f"{row[metric]:.7f}" for metric in _METRICS]
            away = max(
                abs(one[metric] - other[metric])
                for one, other in zip(
                    *(found[c][name]["whole"]["history"] for c in (counts[0], count)), strict=True
                )
                for metric in _METRICS
            )
            rows.append([name, str(count), *shown, f"{away:.1e}"])
    show(["training", "processes", *_METRICS, "farthest from one, over all epochs"], rows)


if __name__ == "__main__":
    main()
