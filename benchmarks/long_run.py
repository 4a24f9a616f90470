"""What a long training does to time and memory: nothing, if all is well.

python -m benchmarks.long_run [--epochs 1000]

Trains the smallest model on a few images through `python -m src.train` in an SQLite store, and compares the
first tenth of the epochs (but for ten) with the last: seconds per epoch, memory of the process's own. Prints
which part of an epoch's time the record in MLflow takes beside the loop, and the time of one call.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from benchmarks.measuring import keep, python, show

SETTINGS = """
data: {root_dir: small.npz}
model: {name: shufflenet_v2_x0_5, weights: none}
training: {batch_size: 32}
"""
WARM_UP = 10


def own_memory() -> int:
    """Bytes that only this process uses."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def train(epochs: int) -> None:
    """Trains, and prints what each epoch and each call to MLflow took as JSON."""
    from src.tracking.run import TrackedRun
    from src.train import main

    seconds: list[float] = []
    ends: list[tuple[float, int]] = []
    really = TrackedRun.log_metrics

    def timed(run: TrackedRun, metrics: dict[str, float], step: int) -> None:
        started = time.perf_counter()
        really(run, metrics, step)
        now = time.perf_counter()
        seconds.append(now - started)
        ends.append((now, own_memory()))

    TrackedRun.log_metrics = timed  # type: ignore[assignment, method-assign]
    Path("config.yaml").write_text(SETTINGS)
    with redirect_stdout(StringIO()):
        status = main(["--config", "config.yaml", "--epochs", str(epochs)])
    # The last call is that of the results.
    print(json.dumps({"status": status, "calls": seconds[:epochs], "ends": ends[:epochs]}))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.long_run", description=__doc__)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from tests.images import write_npz

    with tempfile.TemporaryDirectory(prefix="long-") as name:
        folder = Path(name)
        write_npz(folder / "small.npz", size=32, train=64, val=32)
        told = json.loads(
            python(folder, "-m", "benchmarks.long_run", "train", str(args.epochs)).splitlines()[-1]
        )
    times, memory = zip(*told["ends"], strict=True)
    lasted = [after - before for before, after in itertools.pairwise(times)]
    part = max(args.epochs // 10, WARM_UP)
    rows = []
    for what, values, unit in (
        ("seconds per epoch", lasted, 1.0),
        ("milliseconds of MLflow", told["calls"], 1e3),
        ("own memory, MiB", memory, 1 / 2**20),
    ):
        first, last = (statistics.median(cut) * unit for cut in (values[WARM_UP:part], values[-part:]))
        rows.append([what, f"{first:.4g}", f"{last:.4g}", f"{last / first:.3f}"])
    show(["", f"epochs {WARM_UP + 1} to {part}", f"the last {part}", "ratio"], rows)
    keep(args.json, told)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(int(sys.argv[2]))
    else:
        main()
