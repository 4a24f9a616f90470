"""A program that trains in as many processes as start it, and writes what each of them has seen."""

import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.data.dataset import Dataset, load_dataset
from src.training.checkpoint import TrainerState
from src.training.recorder import TIMING_METRICS, StateRecorder
from src.training.setup import set_up
from src.training.trainer import Trainer
from src.utils.config import Config
from src.utils.distributed import ProcessGroup, connect, process_group
from src.utils.runtime import determinism
from src.verification.run_digest import digest


class ByteRecorder(StateRecorder):
    """Keeps every checkpoint, as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []

    def save_epoch(self, checkpoint: Mapping[str, Any], metrics: Mapping[str, float], **_: bool) -> None:
        assert metrics == checkpoint["history"][-1]
        self.save_mid_epoch(checkpoint)

    def save_mid_epoch(self, checkpoint: Mapping[str, Any]) -> None:
        stream = io.BytesIO()
        torch.save(dict(checkpoint), stream)
        self.kept.append(stream.getvalue())


def make_trainer(config: Config, dataset: Dataset, group: ProcessGroup, recorder: ByteRecorder) -> Trainer:
    setup = set_up(config, dataset, group=group)
    for module in setup.context.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process draws its own, so that no two numbers of them agree
    return Trainer(setup.config, dataset, setup.context, setup.train_step, recorder=recorder, extra={})


def summary(state: TrainerState, trainer: Trainer) -> dict[str, Any]:
    return {
        "history": [{k: v for k, v in row.items() if k not in TIMING_METRICS} for row in state.history],
        "weights": digest(dict(trainer.context.model.state_dict())),
        "optimizer": digest(trainer.train_step.optimizer.state_dict()),
    }


def train(config: Config, dataset: Dataset, group: ProcessGroup, resume: bool) -> dict[str, Any]:
    recorder = ByteRecorder()
    trainer = make_trainer(config, dataset, group, recorder)
    found: dict[str, Any] = {"whole": summary(trainer.fit(), trainer), "resumed": []}
    places = (2, 6, 8) if resume else ()  # within the first epoch, after it, within the second
    for place in places:
        kept = torch.load(io.BytesIO(recorder.kept[place]), weights_only=True)
        again = make_trainer(config, dataset, group, ByteRecorder())
        again.restore(group.broadcast_object(kept))
        at = f"epoch {kept['epoch']}, step {kept['steps']}"
        found["resumed"].append([at, summary(again.fit(), again)])
    return found


class Forced(ProcessGroup):
    """A single process that does all that several do."""

    is_distributed = True


@contextmanager
def forced() -> Iterator[ProcessGroup]:
    """For a machine with one GPU, on which no two processes can talk over NCCL."""
    yield Forced(messages=connect(0))
    torch.distributed.destroy_process_group()


def main() -> None:
    tasks = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    joined = forced() if "--forced" in sys.argv else process_group()
    with joined as group, determinism(enabled=True), group.synchronized():
        found = {}
        for name, task in tasks.items():
            config = Config().updated(task["settings"])
            dataset = load_dataset(config.data, Path("cache"))
            found[name] = train(config, dataset, group, task["resume"])
        Path(f"found_{group.world_size}_{group.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
