"""The AUC of several runs' stored predictions, each and on average, with 95 % intervals.

python -m benchmarks.seeds outputs/exp_*/predictions/test.csv
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from src.training.auc import auc
from src.training.predictions import Predictions, read_predictions

RESAMPLES = 2000


def bootstrap(table: Predictions, seed: int = 0) -> tuple[float, float]:
    """Percentile interval over resampled images (Efron 1979), classes resampled apart."""
    random = np.random.default_rng(seed)
    rows = [np.flatnonzero(table.labels == label) for label in range(len(table.classes))]
    values: NDArray[np.float64] = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = np.concatenate([random.choice(of_class, len(of_class)) for of_class in rows])
        values[i] = auc(table.labels[drawn], table.probabilities[drawn])
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def main(paths: list[str]) -> None:
    """Prints one line per file, then the mean with Student's interval over the runs."""
    values = []
    for path in paths:
        table = read_predictions(Path(path))
        value = auc(table.labels, table.probabilities)
        low, high = bootstrap(table)
        print(f"{path}: AUC {value:.4f}, 95 % interval over images {low:.3f} to {high:.3f}")
        values.append(value)
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        mean = float(np.mean(values))
        low, high = mean - half, mean + half
        print(f"mean of {len(values)}: {mean:.4f}, 95 % interval over runs {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
