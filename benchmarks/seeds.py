"""The AUC of several runs' stored predictions, each and on average, with 95 % intervals.

python -m benchmarks.seeds outputs/exp_*/predictions/test.csv
"""

import sys
from pathlib import Path

import numpy as np
from scipy import stats

from src.evaluation.auc import auc
from src.evaluation.intervals import interval
from src.evaluation.predictions import read_predictions


def main(paths: list[str]) -> None:
    """Print one line per file, then the mean with Student's interval over the runs."""
    values = []
    for path in paths:
        table = read_predictions(Path(path))
        value = auc(table.labels, table.probabilities)
        found = interval(table.labels, table.probabilities, table.patients)
        print(f"{path}: AUC {value:.4f}, 95 % interval ({found.note}) {found.low:.3f} to {found.high:.3f}")
        values.append(value)
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        mean = float(np.mean(values))
        low, high = mean - half, mean + half
        print(f"mean of {len(values)}: {mean:.4f}, 95 % interval over runs {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
