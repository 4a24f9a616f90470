"""How the training loop scales over processes, and how near one process is to the bare loop.

python -m benchmarks.scaling [--model resnet18] [--size 64] [--batch 64] [--processes 1,2] [--threads 1]

Each way trains the same images in the same global batches (augmentation, copies to the device, optimizer; no
MLflow, no checkpoints) in processes of its own, and the ways take turns. ``bare`` is one process that
computes forward, backward and step on batches that lie ready on the device. Every process has ``--threads``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import keep, python, show, spread
from benchmarks.peers import Work
from src.data.augment import augment, draw_changes
from src.data.batches import training_batches
from src.data.dataset import Dataset, load_dataset
from src.models.forward import train_mode
from src.models.input_spec import unit_range
from src.training.recorder import StateRecorder
from src.training.setup import Setup, set_up
from src.training.trainer import Trainer
from src.utils.distributed import ProcessGroup, process_group
from src.utils.runtime import determinism
from tests.images import write_npz

_EPOCHS = 4
_WORKER = "--worker"


def worker(way: str, work: Work) -> None:
    """Trains, and prints the images per second of each epoch but the first."""
    config = work.config
    with process_group() as group, determinism(config.training.deterministic):
        dataset = load_dataset(config.data, Path("cache"))
        setup = set_up(config, dataset, group=group)
        rates = _bare(setup, dataset) if way == "bare" else _ours(setup, dataset, group)
        if group.is_main:
            print(json.dumps(rates[1:]))


def _ours(setup: Setup, dataset: Dataset, group: ProcessGroup) -> list[float]:
    trainer = Trainer(
        setup.config, dataset, setup.context, setup.train_step, recorder=StateRecorder(), extra={}
    )
    with group.synchronized():
        return [row["images_per_second"] for row in trainer.fit().history]


def _bare(setup: Setup, dataset: Dataset) -> list[float]:
    train_mode(setup.context.model, freeze_backbone=False)
    batches = list(_ready(setup, dataset))
    rates = []
    for _ in range(_EPOCHS):
        started = time.perf_counter()
        for images, labels in batches:
            setup.train_step.step(setup.context, images, labels)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rates.append(len(dataset.splits["train"]) / (time.perf_counter() - started))
    return rates


def _ready(setup: Setup, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    labels, device = dataset.splits["train"].labels, setup.context.device
    for positions in training_batches(len(labels), setup.config.training.batch_size, seed=0, epoch=1):
        pixels = unit_range(dataset.batch("train", positions).to(device))
        strengths = setup.config.data.augment
        changes = draw_changes(strengths, [0], [len(pixels)]).to(device)
        images = setup.context.spec.normalize(augment(pixels, strengths, changes))
        yield (
            images.contiguous(memory_format=torch.channels_last),
            torch.from_numpy(labels[positions]).to(device),
        )


def measure(folder: Path, way: str, args: argparse.Namespace) -> list[float]:
    """Images per second of a way's epochs, in processes of its own."""
    count = 1 if way == "bare" else int(way)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    work = ["-m", "benchmarks.scaling", _WORKER, way, str(folder / "images.npz"), args.model]
    printed = python(folder, *launch, *work, str(args.size), str(args.batch))
    rates: list[float] = json.loads(printed.splitlines()[-1])
    return rates


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12, help="of each epoch")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = args.threads
    ways = ["bare", *args.processes.split(",")]
    measured: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        write_npz(Path(name) / "images.npz", size=args.size, train=args.steps * args.batch, val=16, test=0)
        for _ in range(args.turns):
            for way in ways:
                measured[way].append(statistics.median(measure(Path(name), way, args)))
    rows = []
    for way, rates in measured.items():
        ratios = [rate / one for rate, one in zip(rates, measured["1"], strict=True)]
        rows.append([way, spread(rates, 0), spread(ratios)])
    show(["processes", "images per second", "of one process"], rows)
    keep(args.json, measured)


if __name__ == "__main__":
    if sys.argv[1:2] == [_WORKER]:
        _, _, way, npz, model, size, batch = sys.argv
        worker(way, Work(Path(npz), model, int(size), int(batch), _EPOCHS))
    else:
        main()
