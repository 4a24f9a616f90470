"""Going on from a checkpoint gives what an uninterrupted training gives, to the last bit."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from src.data.dataset import Dataset
from src.errors import DataError
from src.training.checkpoint import CheckpointStore, load_checkpoint
from src.training.recorder import TIMING_METRICS
from src.training.trainer import Trainer
from src.utils.config import Config
from src.utils.runtime import Stopped, stop_signals, uninterrupted
from tests.training.test_options import ALL, are_equal, scores, unbalanced
from tests.training.test_trainer import Memory, make_config, make_trainer

pytestmark = pytest.mark.slow


class Once(Memory):
    """Like a store of a resumed run: what is there at a step stays."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[tuple[str, int], float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().log_metrics(metrics, step)
        for name, value in metrics.items():
            self.there.setdefault((name, step), value)


def stop_at(trainer: Trainer, step: int, number: signal.Signals) -> None:
    """Sends this process a signal in the midst of an optimizer step of the whole run."""
    steps = iter(range(1, 10_000))

    def hook(*_: object) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), number)

    trainer.train_step.optimizer.register_step_pre_hook(hook)


def train_until(config: Config, dataset: Dataset, folder: Path, step: int, number: signal.Signals) -> None:
    trainer = make_trainer(config, dataset, folder, Memory())
    stop_at(trainer, step, number)
    with stop_signals(), pytest.raises(Stopped, match=number.name):
        trainer.fit()


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"training__epochs": 3, "training__batch_size": 8},
    "all": ALL | {"training__epochs": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_step_loses_nothing(name: str, number: signal.Signals, folder: Path) -> None:
    """35 images make five steps an epoch, or three of two passes; stopped in the first and a later epoch."""
    dataset, config = unbalanced(folder), make_config(**SETTINGS[name])
    whole = make_trainer(config, dataset, folder / "whole", Memory())
    expected = whole.fit()
    for step in (2, 5):
        place = folder / str(step)
        train_until(config, dataset, place, step, number)
        stopped, _ = CheckpointStore(place / "checkpoints").load_latest()
        assert stopped["steps"] > 0 or stopped["epoch"] > 0
        rest = make_trainer(config, dataset, place, Memory())
        rest.restore(stopped)
        assert scores(rest.fit().history) == scores(expected.history)
        for file in ("latest.pth", "best_model.pth"):
            one, two = (
                load_checkpoint(folder / "whole/checkpoints" / file),
                load_checkpoint(place / "checkpoints" / file),
            )
            for key in one.keys() & {"model_state_dict", "trained_model_state_dict"}:
                assert are_equal(one[key], two[key])
        csv = "training_history.csv"
        assert (place / csv).read_bytes() == (folder / "whole" / csv).read_bytes()


def test_batches_that_were_seen_are_not_seen_again(folder: Path) -> None:
    dataset, config = unbalanced(folder), make_config(**SETTINGS["plain"])
    train_until(config, dataset, folder, 3, signal.SIGTERM)
    checkpoint, _ = CheckpointStore(folder / "checkpoints").load_latest()
    assert (checkpoint["epoch"], checkpoint["steps"]) == (0, 3)  # the step under way was finished
    rest = make_trainer(config, dataset, folder, Memory())
    rest.restore(checkpoint)
    steps: list[int] = []
    rest.train_step.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    rest.fit()
    assert len(steps) == 3 * 5 - 3


def test_an_epoch_that_takes_long_is_saved_within(folder: Path) -> None:
    dataset = unbalanced(folder)
    config = make_config(
        **SETTINGS["plain"], training__checkpoint_every_minutes=1e-9, training__save_in_background=False
    )
    trainer = make_trainer(config, dataset, folder, Memory())
    seen: list[tuple[int, int]] = []
    latest = folder / "checkpoints/latest.pth"

    def look(*_: object) -> None:
        if latest.exists():
            found = load_checkpoint(latest)
            seen.append((found["epoch"], found["steps"]))

    trainer.train_step.optimizer.register_step_pre_hook(look)
    trainer.fit()
    assert seen[:5] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder: Path) -> None:
    dataset, config = unbalanced(folder), make_config(**SETTINGS["plain"])
    expected = make_trainer(config, dataset, folder / "whole", Memory()).fit()
    train_until(config, dataset, folder, 8, signal.SIGTERM)
    store = CheckpointStore(folder / "checkpoints")
    data = bytearray(store.latest.read_bytes())
    data[len(data) // 2] ^= 1  # one bit of some weight
    store.latest.write_bytes(data)
    with pytest.raises(DataError, match=r"latest\.pth: .* is damaged"):
        load_checkpoint(store.latest)
    checkpoint, warning = store.load_latest()
    assert checkpoint["epoch"] == 1
    assert "continuing from latest.prev.pth, epoch 1" in str(warning)
    rest = make_trainer(config, dataset, folder, Memory())
    rest.restore(checkpoint)
    assert scores(rest.fit().history) == scores(expected.history)
    store.latest.write_bytes(b"")
    store.previous.unlink()
    with pytest.raises(DataError, match=r"latest\.prev\.pth"):
        store.load_latest()


def test_a_kill_between_latest_and_best_is_mended(folder: Path) -> None:
    store = CheckpointStore(folder)
    first = {"model_state_dict": {}, "epoch": 1, "steps": 0, "best_epoch": 1}
    store.save(first, is_best=True)
    store.save(first | {"epoch": 2, "best_epoch": 2}, is_best=False)  # died before the link
    assert load_checkpoint(store.best)["epoch"] == 1
    store.load_latest()
    assert load_checkpoint(store.best)["epoch"] == 2
    store.save(first | {"epoch": 3, "best_epoch": 2}, is_best=False)
    store.load_latest()
    assert load_checkpoint(store.best)["epoch"] == 2


def test_every_metric_once_also_where_the_process_died_before_it_was_logged(folder: Path) -> None:
    dataset, config = unbalanced(folder), make_config(**SETTINGS["plain"])
    whole = Once()
    make_trainer(config, dataset, folder / "whole", whole).fit()
    train_until(config, dataset, folder, 8, signal.SIGTERM)
    checkpoint, _ = CheckpointStore(folder / "checkpoints").load_latest()
    memory = Once()  # a store that has none of the first epoch
    rest = make_trainer(config, dataset, folder, memory)
    rest.restore(checkpoint)
    rest.fit()
    assert memory.there.keys() == whole.there.keys()
    assert {k: v for k, v in memory.there.items() if k[0] not in TIMING_METRICS} == {
        k: v for k, v in whole.there.items() if k[0] not in TIMING_METRICS
    }


def signalled(number: signal.Signals, then: Callable[[], object]) -> None:
    """What belongs together, with a signal in its midst."""
    with uninterrupted():
        with uninterrupted():
            os.kill(os.getpid(), number)
        then()


def test_what_belongs_together_comes_to_its_end_and_a_second_ctrl_c_ends_at_once() -> None:
    done: list[object] = []
    with stop_signals(), pytest.raises(Stopped):
        signalled(signal.SIGINT, lambda: done.append(signal.getsignal(signal.SIGINT)))
    assert done == [signal.SIG_DFL]


def test_an_error_is_not_hidden_by_a_signal() -> None:
    with stop_signals():
        with pytest.raises(ZeroDivisionError):
            signalled(signal.SIGTERM, lambda: 1 // 0)
        with pytest.raises(Stopped):
            signalled(signal.SIGCONT, lambda: None)  # the one from before
