"""What is kept beside the loop: the same as without, in order, and nothing of it lost."""

import copy
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from src.data.dataset import Dataset
from src.errors import StoreError
from src.models.build import build_model
from src.training.checkpoint import CheckpointStore, load_checkpoint
from src.training.recorder import Snapshot
from src.utils.background import Background
from tests.training.test_options import ALL, scores, unbalanced
from tests.training.test_trainer import Memory, dataset, make_config, make_trainer

pytestmark = pytest.mark.slow

__all__ = ["dataset"]


def are_same(one: Any, two: Any) -> bool:
    """Equality of nested states, to the last bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(are_same(value, two[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(two) and all(map(are_same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


def test_results_are_the_same_with_background_saving_on_and_off(folder: Path) -> None:
    """With every option on, and a checkpoint after each step."""
    data, states = unbalanced(folder), []
    for beside in (True, False):
        config = make_config(
            **ALL, training__checkpoint_every_minutes=1e-9, training__save_in_background=beside
        )
        memory = Memory()
        make_trainer(config, data, folder / str(beside), memory).fit()
        states.append(load_checkpoint(folder / str(beside) / "checkpoints/latest.pth"))
        assert [step for step, _ in memory.metrics] == [1, 2, 3, 4]
    one, two = states
    assert scores(one.pop("history")) == scores(two.pop("history"))
    assert are_same(one, two)


class Waiting(Memory):
    """A tracker that takes the metrics of the first epoch only when the second one has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.has_gone_on = threading.Event()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        assert step > 1 or self.has_gone_on.wait(60), "training waited for the tracker"
        super().log_metrics(metrics, step)


def test_training_goes_on_while_an_epoch_is_kept_and_the_order_holds(dataset: Dataset, folder: Path) -> None:
    tracker, seen = Waiting(), []
    trainer = make_trainer(make_config(training__epochs=3), dataset, folder, tracker)

    def look(*_: object) -> None:
        seen.append(1)
        if len(seen) == 6:  # four steps are an epoch
            tracker.has_gone_on.set()

    trainer.train_step.optimizer.register_step_pre_hook(look)
    trainer.fit()
    assert [step for step, _ in tracker.metrics] == [1, 2, 3]
    assert load_checkpoint(folder / "checkpoints/latest.pth")["epoch"] == 3


class Gone(Memory):
    """A store that fails at the second epoch."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step == 2:
            raise StoreError("the store is gone")
        super().log_metrics(metrics, step)


@pytest.mark.parametrize("beside", [True, False])
def test_what_fails_beside_the_loop_ends_the_training(beside: bool, dataset: Dataset, folder: Path) -> None:
    config = make_config(training__epochs=50, training__save_in_background=beside)
    trainer = make_trainer(config, dataset, folder, Gone())
    with pytest.raises(StoreError, match="the store is gone"):
        trainer.fit()
    assert trainer.state.epoch in (2, 3)
    assert CheckpointStore(folder / "checkpoints").load_latest()[0]["epoch"] == 2


def test_a_failure_in_the_last_epoch_is_no_success(dataset: Dataset, folder: Path) -> None:
    with pytest.raises(StoreError, match="the store is gone"):
        make_trainer(make_config(training__epochs=2), dataset, folder, Gone()).fit()


def test_the_first_error_is_not_hidden_by_one_in_the_background() -> None:
    def fail() -> None:
        raise OSError("second")

    def fail_twice() -> None:
        with Background() as background:
            background.start(fail)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail_twice()


def test_a_snapshot_stays_while_its_source_changes() -> None:
    model = build_model("mnasnet0_5", num_classes=2, channels=1, size=32, stem="auto", weights="none").model
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state: dict[str, Any] = {"model": model.state_dict(), "rows": [{"a": 1.0}], "epoch": 1}
    expected, snapshot = copy.deepcopy(state), Snapshot()
    first = snapshot.take(state)
    memory = {key: value.data_ptr() for key, value in first["model"].items()}
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    state["rows"].append({"a": 2.0})
    assert are_same(first, expected)
    for key, value in first["model"].items():
        assert value.stride() == expected["model"][key].stride()
    model.load_state_dict(first["model"])  # which needs the version that MNASNet keeps with its state
    second = snapshot.take(state)
    assert {key: value.data_ptr() for key, value in second["model"].items()} == memory
    assert second["rows"] == [{"a": 1.0}, {"a": 2.0}]
