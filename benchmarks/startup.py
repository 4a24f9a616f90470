"""How long a training takes to start: to its first step, against what it cannot do without.

python -m benchmarks.startup [--turns 5]

In turns, on the demo with everything cached and a store at hand: `python -m src.train` until its first step
begins, and a process that imports torch, torchvision and mlflow and builds the model. Interpreter included.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import environment, keep, python, show, spread

TRAINING = ["-m", "src.train", "--model", "resnet18", "--modality", "A"]
LEAST = """
import torch
from src.utils.torchvision_import import torchvision
import mlflow
torchvision.models.resnet18(num_classes=2)
print("run")
"""


def until(word: str, folder: Path, *arguments: str) -> float:
    """Seconds from the start of a Python process to the first line that begins with a word."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(word):
                seconds = time.perf_counter() - started
                process.terminate()
                return seconds
    raise SystemExit(f"{' '.join(arguments)} never said {word!r}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to keep every time")
    args = parser.parse_args()
    measured: dict[str, list[float]] = {
        "imports and model": [],
        "first step": [],
        "src.train --help": [],
        "src.promote --help": [],
    }
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = Path(name)
        python(folder, *TRAINING, "--epochs", "1")
        for _ in range(args.turns):
            measured["imports and model"].append(until("run", folder, "-c", LEAST))
            # The line with the run's id is printed when all is set up, right before the first step.
            measured["first step"].append(until("run", folder, *TRAINING))
            for command in ("src.train", "src.promote"):
                measured[f"{command} --help"].append(until("usage", folder, "-m", command, "--help"))
    show(["", "seconds"], [[what, spread(seconds)] for what, seconds in measured.items()])
    pairs = zip(measured["first step"], measured["imports and model"], strict=True)
    print(f"first step, of imports and model: {spread([ours / least for ours, least in pairs])}")
    keep(args.json, measured)


if __name__ == "__main__":
    main()
