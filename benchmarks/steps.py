"""What a training step of the project is made of: how much of it is data.

python -m benchmarks.steps [--model resnet18] [--size 64] [--batch 64]

Each part is timed in turns on the batches of an epoch: making a batch (read from the pack, moved
to the device, augmented, standardised), the step itself (forward, backward, optimizer), and the checksums of
a batch, which only the first epoch of a run computes.
"""

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measuring import keep, show, spread
from benchmarks.peers import Work
from src.data.augment import augment, draw_changes
from src.data.batches import training_batches
from src.data.dataset import Dataset, load_dataset
from src.models.forward import train_mode
from src.models.input_spec import unit_range
from src.training.setup import Setup, set_up
from tests.images import write_npz


def parts(setup: Setup, dataset: Dataset) -> dict[str, Callable[[int], None]]:
    """Return what is timed, by its name; each takes the number of a batch."""
    network, config, labels = setup.context, setup.config, dataset.splits["train"].labels
    batches = training_batches(len(labels), config.training.images_per_step, seed=0, epoch=1)

    def images(number: int) -> torch.Tensor:
        pixels = dataset.batch("train", batches[number % len(batches)]).to(network.device)
        changes = draw_changes(config.data.augment, [number], [len(pixels)]).to(network.device)
        changed = augment(unit_range(pixels), config.data.augment, changes)
        return network.spec.normalize(changed).contiguous(memory_format=torch.channels_last)

    ready = [(images(i), torch.from_numpy(labels[chosen])) for i, chosen in enumerate(batches)]

    def step(number: int) -> None:
        images, targets = (part.to(network.device) for part in ready[number % len(ready)])
        setup.train_step.step(network, images, targets)

    def checksums(number: int) -> None:
        for image in read[number % len(read)]:
            zlib.crc32(image.data)

    read = [dataset.batch("train", chosen).numpy() for chosen in batches]
    return {"data": lambda number: void(images(number)), "step": step, "checksums": checksums}


def void(_: object) -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="steps-") as name:
        npz = write_npz(Path(name) / "images.npz", size=args.size, train=8 * args.batch, val=16)
        config = Work(npz, args.model, args.size, args.batch, 1).config
        dataset = load_dataset(config.data, Path(name) / "cache")
        setup = set_up(config, dataset)
        train_mode(setup.context.model, freeze_backbone=False)
        timed = parts(setup, dataset)
        for turn in range(args.turns + 1):
            for what, work in timed.items():
                started = time.perf_counter()
                work(turn)
                void(None)
                measured.setdefault(what, []).append(1000 * (time.perf_counter() - started))
    measured = {what: times[1:] for what, times in measured.items()}
    show(["", "milliseconds"], [[what, spread(times)] for what, times in measured.items()])
    for what in ("data", "checksums"):
        pairs = zip(measured[what], measured["step"], strict=True)
        print(f"{what}, of a step with it: {spread([100 * part / (part + step) for part, step in pairs])} %")
    keep(args.json, measured)


if __name__ == "__main__":
    main()
