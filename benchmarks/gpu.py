"""How close training on a GPU comes to the bare loop, and what the rest of an epoch costs.

python -m benchmarks.gpu [--cases resnet50:224,resnet18:64,resnet18:224,resnet18:28]

All ways train on gray images with the same precision and compile setting, and take turns:

- bare: forward, backward and optimizer on one batch that stays on the GPU
- resident: the project's loop, images kept on the GPU (data.device_cache=auto)
- streamed: the project's loop, images read ahead from a file (data.device_cache=off)
- loader: the same network from PNG files by a DataLoader with 16 workers, as in torchvision's recipe

An epoch is training, validation, checkpoints on disk and history; the bare epoch trains and validates on
batches that stay on the GPU. Needs no MLflow and no network.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.measuring import keep, show, spread
from src.data.dataset import Dataset, Split
from src.data.image_array import ImageArray
from src.models.forward import ModelContext
from src.training.checkpoint import CheckpointStore
from src.training.compile import compiled
from src.training.recorder import Recorder
from src.training.setup import Setup, set_up
from src.training.trainer import Trainer
from src.utils.config import Config
from src.utils.runtime import determinism
from src.utils.torchvision_import import submodule

BATCH = 128
STEPS = {28: 120, 64: 100, 224: 40}
"""Training steps of an epoch by the side of the images."""
_PNG_FILES = 1024
_WORKERS = 16
Rate = Callable[[], float]
"""Trains for a while, and returns images per second."""


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    model: str
    size: int

    @property
    def images(self) -> int:
        """Training images; a quarter more to validate on."""
        return BATCH * STEPS[self.size]

    def config(self, **changes: Any) -> Config:  # noqa: ANN401 -- settings of any type
        """Return the project's settings."""
        values = {"model.name": self.model, "model.weights": "none", "training.batch_size": BATCH}
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        return Config().updated(values | {"training.epochs": 1000, "training.device": "cuda"} | changed)


class NullTracker:
    """Records nothing, where training writes to MLflow."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""

    def finish(self, status: str, message: str | None = None) -> None:
        """Do nothing."""


def make_dataset(folder: Path, case: Case) -> Dataset:
    """Smooth random images in a file, as the decode cache leaves them."""
    sides = {"train": case.images, "val": case.images // 4}
    random = np.random.default_rng(0)
    coarse = random.integers(0, 200, (256, 1, -(-case.size // 8), -(-case.size // 8)), dtype=np.uint8)
    smooth = coarse.repeat(8, 2).repeat(8, 3)[..., : case.size, : case.size]
    path = folder / f"{case.size}.npy"
    count = sum(sides.values())
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 1, case.size, case.size))
    for start in range(0, count, 256):
        part = images[start : start + 256]
        part[:] = smooth[: len(part)] + random.integers(0, 50, part.shape, dtype=np.uint8)
    images.flush()
    splits, first = {}, 0
    for name, size in sides.items():
        rows = np.arange(first, first + size)[:, None]
        splits[name] = Split(rows, np.arange(size) % 2, ("",) * size, (None,) * size)
        first += size
    array = ImageArray.of_file(path.open("rb", buffering=0))
    return Dataset(folder, ("0", "1"), (array,), None, splits, "", "", (), {})


def bare(setup: Setup, steps: int, network: ModelContext | None = None) -> Callable[[], None]:
    """Return the bare loop over some steps on one batch that stays on the GPU.

    Args:
        setup: The run.
        steps: How many.
        network: The run's network as its passes are launched; None for the project's way.
    """
    network = fast_network(setup) if network is None else network
    images, labels = resident_batch(setup)
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=1e-3, fused=True)

    def train() -> None:
        network.model.train()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", network.autocast, network.autocast is not None):
                loss = nn.functional.cross_entropy(network.model(images).float(), labels)
            loss.backward()
            optimizer.step()

    return train


def fast_network(setup: Setup) -> ModelContext:
    """Return the network by the project's own ``training.compile``."""
    return compiled(setup.context, setup.config.training)


def bare_epoch(setup: Setup, dataset: Dataset) -> Callable[[], None]:
    """Return the bare loop over an epoch: training steps, then forward passes in float32 to validate."""
    train = bare(setup, len(dataset.splits["train"]) // BATCH)
    images, _ = resident_batch(setup)
    count = len(dataset.splits["val"]) // BATCH

    def epoch() -> None:
        train()
        setup.context.model.eval()
        with torch.inference_mode():
            for _ in range(count):
                setup.context.model(images)

    return epoch


def resident_batch(setup: Setup) -> tuple[Tensor, Tensor]:
    """Return random images and their labels on the GPU."""
    spec, device = setup.context.spec, setup.context.device
    images = torch.randn(BATCH, spec.channels, spec.size, spec.size, device=device)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(BATCH, device=device) % 2


def ours(trainer: Trainer) -> Callable[[], None]:
    """Return the project's loop over the training images of an epoch."""

    def train() -> None:
        trainer.state.steps, trainer.state.loss_sum = 0, torch.zeros((), device="cuda")
        trainer._train(1, trainer.pipeline.order(1), lambda _text: None)

    return train


def make_trainer(case: Case, dataset: Dataset, folder: Path, **changes: Any) -> Trainer:  # noqa: ANN401
    """Return a trainer that writes its checkpoints to a folder."""
    setup = set_up(case.config(**changes), dataset)
    folder.mkdir(parents=True)
    recorder = Recorder(
        CheckpointStore(folder / "checkpoints"), folder / "h.csv", NullTracker(), in_background=True
    )
    return Trainer(setup.config, dataset, setup.context, setup.train_step, recorder=recorder, extra={})


def write_pngs(root: Path, size: int) -> None:
    """Write gray images ``root/CLASS/NUMBER.png``, once."""
    random = np.random.default_rng(0)
    for number in range(0 if root.exists() else _PNG_FILES):
        path = root / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 200, (-(-size // 8),) * 2, dtype=np.uint8)
        smooth = coarse.repeat(8, 0).repeat(8, 1)[:size, :size]
        image = smooth + random.integers(0, 50, smooth.shape, dtype=np.uint8)
        Image.fromarray(image).save(path, compress_level=1)


def png_batches(root: Path, count: int) -> Any:  # noqa: ANN401 -- torch's loader has no type arguments here
    """Return torchvision's recipe over PNG files: decoding and augmentation in worker processes."""
    from torch.utils.data import DataLoader, RandomSampler

    transforms = submodule("transforms.v2")
    moves = [transforms.RandomHorizontalFlip(), transforms.RandomAffine(10, (0.05, 0.05), (0.9, 1.1))]
    to_tensor = [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)]
    light = [transforms.ColorJitter(0.1, 0.1), *to_tensor, transforms.Normalize([0.5], [0.25])]
    chain = transforms.Compose([transforms.Grayscale(), *moves, *light])
    images = submodule("datasets").ImageFolder(str(root), chain)
    return DataLoader(
        images,
        BATCH,
        sampler=RandomSampler(images, replacement=True, num_samples=count),
        num_workers=_WORKERS,
        pin_memory=True,
        persistent_workers=True,
    )


def recipe(setup: Setup, batches: Any) -> Rate:  # noqa: ANN401
    """Return torchvision's training loop; its rate is taken once all workers are busy."""
    network = fast_network(setup)
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=1e-3, fused=True)

    def train() -> float:
        network.model.train()
        gc.collect()
        gc.freeze()  # a worker that clears away its copy of something on the GPU would end
        started = 0.0
        for number, (pixels, labels) in enumerate(batches):
            if number == _WORKERS:
                torch.cuda.synchronize()
                started = time.perf_counter()
            moved = pixels.to("cuda", non_blocking=True, memory_format=torch.channels_last)
            targets = labels.to("cuda", non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", network.autocast, network.autocast is not None):
                loss = nn.functional.cross_entropy(network.model(moved).float(), targets)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        return (len(batches) - _WORKERS) * BATCH / (time.perf_counter() - started)

    return train


def seconds(work: Callable[[], None]) -> float:
    """How long a piece of work takes, until the GPU is done."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def rate_of(images: int, work: Callable[[], None]) -> Rate:
    """Return a piece of work on so many images as one that returns its rate."""
    return lambda: images / seconds(work)


def idle_share(work: Callable[[], None]) -> float:
    """Return the share of a piece of work in which no kernel runs, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() or [] if event.device_type.name == "CUDA"]
    spans = sorted((float(event.time_range.start), float(event.time_range.end)) for event in events)
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / (until - spans[0][0])


def take_turns(ways: Mapping[str, Rate], turns: int) -> dict[str, list[float]]:
    """Images per second of each way in each turn, after one turn that is not counted."""
    rates = [{name: train() for name, train in ways.items()} for _ in range(turns + 1)][1:]
    return {name: [rate[name] for rate in rates] for name in ways}


def measure(case: Case, folder: Path, turns: int, *, with_loader: bool) -> dict[str, Any]:
    """All figures of one case."""
    dataset = make_dataset(folder, case)
    place = folder / f"{case.model}-{case.size}"
    loops = {
        "bare": bare(set_up(case.config(), dataset), STEPS[case.size]),
        "resident": ours(make_trainer(case, dataset, place / "resident")),
        "streamed": ours(make_trainer(case, dataset, place / "streamed", data__device_cache="off")),
    }
    ways = {name: rate_of(case.images, work) for name, work in loops.items()}
    if with_loader:
        write_pngs(folder / "png" / str(case.size), case.size)
        batches = png_batches(folder / "png" / str(case.size), (_WORKERS + STEPS[case.size]) * BATCH)
        ways["loader"] = recipe(set_up(case.config(), dataset), batches)
    rates = take_turns(ways, turns)
    idle = {name: idle_share(work) for name, work in loops.items()}
    return {"rates": rates, "idle": idle, "epochs": whole_epochs(case, dataset, place, turns)}


def whole_epochs(case: Case, dataset: Dataset, folder: Path, turns: int) -> dict[str, list[float]]:
    """Seconds of bare epochs, and of ours between the ends of two epochs."""
    work = bare_epoch(set_up(case.config(), dataset), dataset)
    work()
    trainer = make_trainer(case, dataset, folder / "whole", training__epochs=turns + 2)
    ends: list[float] = []
    save = trainer._save_epoch

    def save_and_mark(metrics: dict[str, float]) -> None:
        save(metrics)
        ends.append(time.perf_counter())

    trainer._save_epoch = save_and_mark  # type: ignore[method-assign]
    trainer.fit()
    # From the end of one to the end of the next; what the first needs once is not counted.
    ours_each = [later - earlier for earlier, later in pairwise(ends[1:])]
    return {"bare": [seconds(work) for _ in range(turns)], "ours": ours_each}


def rows_of(case: Case, found: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table for one case."""
    rows = []
    for way, rates in found["rates"].items():
        shares = [rate / limit for rate, limit in zip(rates, found["rates"]["bare"], strict=True)]
        idle = found["idle"].get(way)
        rows.append(
            [
                f"{case.model} {case.size} px",
                way,
                spread(rates, 0),
                spread(shares),
                "" if idle is None else f"{100 * idle:.0f} %",
            ]
        )
    epochs = found["epochs"]
    share = [statistics.median(epochs["bare"]) / each for each in epochs["ours"]]
    per_epoch = [case.images / each for each in epochs["ours"]]
    rows.append([f"{case.model} {case.size} px", "whole epoch", spread(per_epoch, 0), spread(share), ""])
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--cases", default="resnet50:224,resnet18:64,resnet18:224,resnet18:28")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-loader", action="store_true", help="leave the DataLoader out")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [Case(name, int(size)) for name, size in (item.split(":") for item in args.cases.split(","))]
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    found = {}
    with tempfile.TemporaryDirectory(prefix="gpu-") as name, determinism(enabled=True):
        for case in cases:
            key = f"{case.model}:{case.size}"
            found[key] = measure(case, Path(name), args.turns, with_loader=not args.no_loader)
            show(["", "", "images/s", "of bare", "GPU idle"], rows_of(case, found[key]))
            keep(args.json, found)


if __name__ == "__main__":
    main()
