"""How long training stands still for a checkpoint.

python -m benchmarks.saving [--model resnet18] [--size 64] [--batch 64]

The state after a step of AdamW is saved beside further steps, as the trainer does it: the stall is the
snapshot, plus what the steps during the write take longer than those without. The steps take turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.measuring import keep, show, spread
from src.models.build import build_model
from src.training.checkpoint import CheckpointStore
from src.training.optim import make_optimizer, resolve_defaults
from src.training.recorder import Snapshot
from src.utils.background import Background
from src.utils.config import Config
from src.utils.memory import keep_freed_memory
from src.utils.runtime import fit_threads, pick_autocast, pick_device

STEPS = 8


class Loop:
    """A model that takes steps on one batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        fit_threads()
        keep_freed_memory()
        self.device = pick_device("auto")
        self.autocast = pick_autocast("auto", self.device)
        built = build_model(
            args.model, num_classes=2, channels=1, size=args.size, stem="auto", weights="none"
        )
        self.model = built.model.to(self.device)
        groups = [{"params": list(self.model.parameters())}]
        self.optimizer = make_optimizer(groups, resolve_defaults(Config()).training)
        self.images = torch.rand(args.batch, 1, args.size, args.size, device=self.device)
        self.labels = torch.randint(0, 2, (args.batch,), device=self.device)

    def step(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.autocast, self.autocast is not None):
            loss = nn.functional.cross_entropy(self.model(self.images).float(), self.labels)
        loss.backward()
        self.optimizer.step()

    def steps(self) -> float:
        """Seconds of some steps."""
        started = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def state(self) -> dict[str, object]:
        """Return what a checkpoint holds, but for small things."""
        return {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.saving", description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    loop, snapshot = Loop(args), Snapshot()
    loop.steps()
    measured: dict[str, list[float]] = {name: [] for name in ("snapshot", "write alone", "stall in all")}
    with tempfile.TemporaryDirectory(prefix="saving-", dir=".") as folder, Background() as background:
        store = CheckpointStore(Path(folder) / "checkpoints")
        for _ in range(args.turns + 1):
            before = loop.steps()
            started = time.perf_counter()
            state = snapshot.take(loop.state())
            took = time.perf_counter() - started
            background.start(lambda state=state: store.save(state, is_best=True))  # type: ignore[misc]
            during = loop.steps()
            background.wait()
            after = loop.steps()
            started = time.perf_counter()
            store.save(state, is_best=True)
            measured["write alone"].append(time.perf_counter() - started)
            measured["snapshot"].append(took)
            measured["stall in all"].append(took + during - statistics.mean([before, after]))
    found = {name: values[1:] for name, values in measured.items()}  # the first makes the snapshot's memory
    show(["", "seconds"], [[name, spread(values, 3)] for name, values in found.items()])
    keep(args.json, measured)


if __name__ == "__main__":
    main()
