"""How fast an epoch is: this project, others as their users write them, and the bare loop as the limit.

python -m benchmarks.throughput --peers bare,ours --size 64 --images 2048

Peers are processes of their own with the same images, model, batch and precision. They take turns of one
epoch each, all others stopped meanwhile, and the first of each is not counted. Times are taken after every
optimizer step, by the same hook for all. A ratio is that of one round, so that a machine that is slower for a
while is so for all.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from benchmarks.measuring import environment, keep, show, spread
from benchmarks.peers import PEERS
from tests.images import write_npz

LIMIT = "bare"
WARM_UP = 1


@dataclass(frozen=True)
class Epoch:
    """One measured epoch.

    Attributes:
        rate: Images per second from the first training step to the last.
        seconds: From the first step to the first of the next epoch: training, validation, everything.
        cpu_seconds: Processor time within these, of all processes.
    """

    rate: float
    seconds: float
    cpu_seconds: float


Round = dict[str, Epoch]
"""One epoch of each peer."""


class Peer:
    """A process that trains, stopped but for its turns."""

    def __init__(self, name: str, folder: Path, args: argparse.Namespace, npz: Path) -> None:
        self._name = name
        steps = -(-args.images // args.batch)
        numbers = (args.size, args.batch, args.rounds + WARM_UP + 2, steps)
        words = (str(npz), args.model, args.precision)
        self._images = args.images * (steps - 1) / steps
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", name, *words, *map(str, numbers)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._wait()

    def train_an_epoch(self) -> Epoch:
        """Its turn."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(".")
        self._process.stdin.flush()
        told = self._wait()
        return Epoch(self._images / told["train"], told["seconds"], told["cpu_seconds"])

    def _wait(self) -> dict[str, float]:
        """Until it has done its epoch; it and what it has started are stopped."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"train"'):
                self._signal(signal.SIGSTOP)
                told: dict[str, float] = json.loads(line)
                return told
        self._log.seek(0)
        raise SystemExit(f"{self._name} ended: {self._log.read()}")

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()


@contextmanager
def started(args: argparse.Namespace) -> Iterator[dict[str, Peer]]:
    """Return the peers, each in a folder of its own, after the first step."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throughput-")))
        npz = folder / "images.npz"
        write_npz(npz, size=args.size, train=args.images, val=args.images // 4, test=16)
        peers = {}
        for name in args.peers.split(","):
            (folder / name).mkdir()
            peers[name] = stack.enter_context(Peer(name, folder / name, args, npz))
        yield peers


def ratios(rounds: list[Round], peer: str, of: Callable[[Epoch], float]) -> list[float]:
    """Return what the peer has of something, as a share of the bare loop's in the same round."""
    return [of(found[peer]) / of(found[LIMIT]) for found in rounds if LIMIT in found]


def report(rounds: list[Round]) -> None:
    """Print medians, spread, and ratios to the bare loop."""
    rows = []
    for peer in rounds[0]:
        found = [epochs[peer] for epochs in rounds]
        train_ratio = ratios(rounds, peer, lambda epoch: epoch.rate)
        whole_ratio = ratios(rounds, peer, lambda epoch: 1 / epoch.seconds)
        cpu_ratio = ratios(rounds, peer, lambda epoch: epoch.cpu_seconds)
        rows.append(
            [
                peer,
                spread([epoch.rate for epoch in found], 0),
                spread(train_ratio) if train_ratio else "",
                spread([epoch.seconds for epoch in found]),
                spread(whole_ratio) if whole_ratio else "",
                spread([epoch.cpu_seconds for epoch in found]),
                spread(cpu_ratio) if cpu_ratio else "",
            ]
        )
    speeds = ["images/s in training", "of bare's", "seconds per epoch", "speed of bare's"]
    show(["peer", *speeds, "CPU seconds", "of bare's"], rows)


def draw(rounds: list[Round], path: Path, title: str) -> None:
    """Draws each round's share of the bare loop's speed, training alone and whole epochs."""
    from src.evaluation.plots import GUIDE, new_figure

    figure = new_figure(7, 3.5)
    axes = figure.add_subplot()
    peers = [peer for peer in rounds[0] if peer != LIMIT]
    for offset, (name, of) in enumerate(
        {"training": lambda e: e.rate, "whole epoch": lambda e: 1 / e.seconds}.items()
    ):
        for place, peer in enumerate(peers):
            values = ratios(rounds, peer, of)
            x = place + 0.3 * (offset - 0.5)
            colour = ("#0072B2", "#D55E00")[offset]
            axes.bar(
                x, statistics.median(values), 0.28, color=colour, alpha=0.5, label=name if not place else ""
            )
            axes.plot([x] * len(values), values, "o", color=colour, markersize=3)
    axes.axhline(1, **GUIDE)
    axes.set_xticks(range(len(peers)), peers)
    axes.set(ylabel="speed, of the bare loop's", title=title)
    figure.legend(loc="outside right upper")
    figure.savefig(path)


def main() -> None:
    """Lets the peers take turns, and shows what came of it."""
    parser = argparse.ArgumentParser("python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--peers", default="bare,ours", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=2048, help="for training; a quarter more to validate")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="auto", help="of the network, as in training.precision")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="where to keep every epoch")
    parser.add_argument("--plot", type=Path, help="where to draw the ratios, such as speed.png")
    args = parser.parse_args()
    # As any error would: else the peers stay behind, stopped, with all their memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with started(args) as peers:
        rounds = [
            {name: peer.train_an_epoch() for name, peer in peers.items()}
            for _ in range(args.rounds + WARM_UP)
        ][WARM_UP:]
    report(rounds)
    keep(args.json, {"rounds": [{peer: asdict(epoch) for peer, epoch in found.items()} for found in rounds]})
    if args.plot:
        draw(rounds, args.plot, f"{args.model}, {args.size} px, {args.images:,} images")


if __name__ == "__main__":
    main()
