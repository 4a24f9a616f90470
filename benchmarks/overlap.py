"""How much of the time to read a batch is hidden behind the computation on the one before.

python -m benchmarks.overlap [--read 20] [--compute 20]

Batches come from a reader that sleeps, and are computed on by matrix products, each for so many milliseconds.
In turns they are read ahead by `src.data.loading.read_ahead`, and one after the other.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.measuring import keep, show, spread
from src.data.batches import BATCHES_AHEAD, read_ahead


def compute(milliseconds: float) -> None:
    """Multiply matrices for so long."""
    matrix, until = torch.ones(256, 256), time.perf_counter() + milliseconds / 1000
    while time.perf_counter() < until:
        matrix @ matrix


def step_time(batches: Iterable[int], milliseconds: float, count: int) -> float:
    """Milliseconds per step once the first batch is there."""
    started = None
    for _ in batches:
        started = started or time.perf_counter()
        compute(milliseconds)
    assert started is not None
    return 1000 * (time.perf_counter() - started) / count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--read", type=float, default=20, help="milliseconds per batch")
    parser.add_argument("--compute", type=float, default=20, help="milliseconds per batch")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    def read(number: int) -> int:
        time.sleep(args.read / 1000)
        return number

    ways: dict[str, Callable[[], Iterable[int]]] = {
        "read ahead": lambda: read_ahead(read, range(args.steps)),
        "in turn": lambda: map(read, range(args.steps)),
    }
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.turns):
        for name, batches in ways.items():
            measured[name].append(step_time(batches(), args.compute, args.steps))
    larger = max(args.read, args.compute)
    rows = [[name, spread(each), spread([time / larger for time in each])] for name, each in measured.items()]
    show(["", "milliseconds per step", "of the larger"], rows)
    print(f"at most {BATCHES_AHEAD} batches are read ahead, beside the one in use")
    keep(args.json, measured)


if __name__ == "__main__":
    main()
