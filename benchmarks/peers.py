"""One way to train on the same images; each is a process of its own, and waits for its turn at each epoch.

python -m benchmarks.peers PEER NPZ MODEL PRECISION SIZE BATCH EPOCHS STEPS
"""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from src.data.augment import augment, draw_changes
from src.data.batches import sequential_batches, training_batches
from src.data.dataset import Dataset, load_dataset
from src.models.input_spec import unit_range
from src.training.setup import Setup, set_up
from src.utils.config import Config


@dataclass(frozen=True)
class Work:
    """What every peer does.

    Attributes:
        npz: The images, in MedMNIST's format.
        model: The architecture, from random weights.
        size: Side of the images in pixels.
        batch: Images per step.
        epochs: Passes over the training images, each followed by one over the validation images.
        precision: That of the network, as in ``training.precision``.
    """

    npz: Path
    model: str
    size: int
    batch: int
    epochs: int
    precision: str = "auto"

    @property
    def config(self) -> Config:
        """The project's own settings of this work."""
        return Config().updated(
            {
                "data.root_dir": str(self.npz),
                "model.name": self.model,
                "model.weights": "none",
                "training.precision": self.precision,
                "training.batch_size": self.batch,
                "training.epochs": self.epochs,
            }
        )


def ours(work: Work) -> None:
    """``python -m src.train``: augmentation, validation, metrics, checkpoints, MLflow in SQLite."""
    from src.train import main

    Path("config.yaml").write_text(work.config.to_yaml())
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = main(["--config", "config.yaml"])
    if status != 0:
        raise SystemExit(f"src.train ended with {status}")


def bare(work: Work) -> None:
    """Forward, backward and step on batches that lie in memory, ready for the network; nothing else."""
    setup, dataset = _prepare(work)
    model = setup.context.model
    train, val = list(_batches(setup, dataset, "train")), list(_batches(setup, dataset, "val"))
    # Fused, where the project's own setup would not be: the limit is the best that there is.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(work.epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad(set_to_none=True)
            with _autocast(setup):
                loss = nn.functional.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            for images, _ in val:
                model(images)


def _prepare(work: Work) -> tuple[Setup, Dataset]:
    config = work.config
    dataset = load_dataset(config.data, Path("cache"))
    return set_up(config, dataset), dataset


def _batches(setup: Setup, dataset: Dataset, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardised float32 images, channels last, as the project's own loop makes them; and their labels."""
    labels, spec = dataset.splits[split].labels, setup.context.spec
    size, is_train = setup.config.training.batch_size, split == "train"
    order = training_batches(len(labels), size, seed=0, epoch=1)
    for positions in order if is_train else sequential_batches(torch.arange(len(labels)).numpy(), size):
        pixels = unit_range(dataset.batch(split, positions))
        strengths = setup.config.data.augment
        changes = draw_changes(strengths, [0], [len(pixels)])
        changed = augment(pixels, strengths, changes) if is_train else pixels
        images = spec.normalize(changed).contiguous(memory_format=torch.channels_last)
        device = setup.context.device
        yield images.to(device), torch.from_numpy(labels[positions]).to(device)


def _autocast(setup: Setup) -> torch.autocast:
    network = setup.context
    return torch.autocast(network.device.type, network.autocast, network.autocast is not None)


def lightning(work: Work) -> None:
    """PyTorch Lightning with MLFlowLogger and ModelCheckpoint, on image files."""
    from benchmarks.others import lightning

    lightning(work)


def reference(work: Work) -> None:
    """Train as torchvision's references do, on image files."""
    from benchmarks.others import reference

    reference(work)


PEERS: dict[str, Callable[[Work], None]] = {
    "bare": bare,
    "ours": ours,
    "lightning": lightning,
    "torchvision": reference,
}


@dataclass
class Turns:
    """Tells when a step was done; at the first step of each epoch it waits until it is this process's turn.

    Attributes:
        steps: Optimizer steps per epoch.
        done: Those that were done.
    """

    steps: int
    done: int = 0
    started: tuple[float, float] = (0.0, 0.0)
    trained: float = 0.0

    def __call__(self, *_: object) -> None:
        """Run after each optimizer step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), cpu_seconds()
        if self.done % self.steps == 0:
            told = {
                # The first step's own time is not known: its start is not marked.
                "train": self.trained - self.started[0],
                "seconds": wall - self.started[0],
                "cpu_seconds": cpu - self.started[1],
            }
            os.write(1, f"\n{json.dumps(told)}\n".encode())  # whatever became of sys.stdout
            os.read(0, 1)
            self.started = time.perf_counter(), cpu_seconds()
        self.trained = time.perf_counter()
        self.done += 1


def cpu_seconds() -> float:
    """Processor time of this process and those it has started."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return float(sum(spent.user + spent.system for spent in times))


def main(argv: Sequence[str]) -> None:
    """Trains, and tells of each epoch as JSON before it waits for its next turn."""
    peer, npz, model, precision, *numbers, steps = argv
    register_optimizer_step_post_hook(Turns(int(steps)))
    size, batch, epochs = map(int, numbers)
    PEERS[peer](Work(Path(npz), model, size, batch, epochs, precision))


if __name__ == "__main__":
    main(sys.argv[1:])
