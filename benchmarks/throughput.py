"""How fast an epoch is: this project, others as their users write them, and the bare loop as the limit.

python -m benchmarks.throughput --peers bare,ours --size 64 --images 2048

Peers take turns, each time as a process of its own on the same images, model, batch and precision; the first
epoch of each is not counted. Times are taken after every optimizer step, by the same hook for all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.peers import PEERS
from tests.conftest import ROOT, write_npz


@dataclass(frozen=True)
class Epoch:
    """One measured epoch.

    Attributes:
        rate: Images per second from the first training step to the last.
        seconds: From the first step to the first of the next epoch: training, validation, everything.
        cpu_seconds: Processor time within these.
    """

    rate: float
    seconds: float
    cpu_seconds: float


def run(peer: str, args: argparse.Namespace, npz: Path) -> list[Epoch]:
    """Trains once by a peer, in an empty folder; its epochs but the first and the last."""
    command = [sys.executable, "-m", "benchmarks.peers", peer, str(npz), args.model]
    command += [str(args.size), str(args.batch), str(args.epochs + 2)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise SystemExit(f"{peer}: {done.stderr}")
    times = json.loads(done.stdout.splitlines()[-1])
    return epochs(times, args.images, len(times) // (args.epochs + 2))


def epochs(times: list[tuple[float, float]], images: int, steps: int) -> list[Epoch]:
    """The epochs of the ends of all steps, but for the first and the last, whose end nothing marks."""
    found = []
    for start in range(steps, len(times) - steps, steps):
        (first, cpu), (last, _), (after, cpu_after) = (
            times[start],
            times[start + steps - 1],
            times[start + steps],
        )
        # The first step's own time is not known: its start is not marked.
        rate = images * (steps - 1) / steps / (last - first)
        found.append(Epoch(rate, after - first, cpu_after - cpu))
    return found


def spread(values: list[float], digits: int = 0) -> str:
    """The median, and from where to where."""
    shown = (statistics.median(values), min(values), max(values))
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*shown, d=digits)


def show(measured: dict[str, list[Epoch]]) -> None:
    """Prints medians, spread, and ratios to the bare loop."""
    table = Table("peer", "images/s in training", "ratio", "seconds per epoch", "ratio", "CPU seconds")
    limit = measured.get("bare", [])
    for peer, found in measured.items():
        rates, seconds = [epoch.rate for epoch in found], [epoch.seconds for epoch in found]
        faster = of_whole = ""
        if limit:
            faster = f"{statistics.median(rates) / statistics.median(epoch.rate for epoch in limit):.3f}"
            of_whole = (
                f"{statistics.median(epoch.seconds for epoch in limit) / statistics.median(seconds):.3f}"
            )
        cpu = spread([epoch.cpu_seconds for epoch in found], 2)
        table.add_row(peer, spread(rates), faster, spread(seconds, 2), of_whole, cpu)
    Console(width=130).print(table)


def main() -> None:
    """Lets the peers take turns, and shows what came of it after each turn."""
    parser = argparse.ArgumentParser("python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--peers", default="bare,ours", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=2048, help="for training; a quarter more to validate")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3, help="that count, each time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to keep every epoch")
    args = parser.parse_args()
    measured: dict[str, list[Epoch]] = {peer: [] for peer in args.peers.split(",")}
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        npz = Path(folder) / "images.npz"
        write_npz(npz, size=args.size, train=args.images, val=args.images // 4, test=16)
        for _ in range(args.repeats):
            for peer, found in measured.items():
                found.extend(run(peer, args, npz))
    show(measured)
    if args.json:
        args.json.write_text(json.dumps({peer: [vars(e) for e in found] for peer, found in measured.items()}))


if __name__ == "__main__":
    main()
