"""The line of an epoch fits into 100 columns, and shows where a training stands."""

import pytest

from src.training.checkpoint import TrainerState
from src.training.epoch_table import EpochTable
from src.utils.config import TrainingConfig

EXTREME = [
    {"train_loss": 0.69314718, "val_loss": 1e-12, "val_auc": 1.0, "images_per_second": 0.4},
    {"train_loss": 1.5e30, "val_loss": float("nan"), "val_auc": float("nan"), "images_per_second": 49999.0},
]


def print_epochs(capsys: pytest.CaptureFixture[str], epochs: int, **values: float) -> list[str]:
    state = TrainerState()
    table = EpochTable(state, TrainingConfig(epochs=1000, early_stopping_patience=7))
    row = EXTREME[0] | {"learning_rate": 1e-3, "epoch_seconds": 3.0} | values
    for epoch in range(1, epochs + 1):
        state.record(row | {"epoch": epoch})
        table.add_epoch()
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("values", EXTREME)
def test_lines_are_aligned_and_short(values: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    titles, first, second = print_epochs(capsys, 2, **values)
    assert len(titles) == len(first) == len(second) <= 100
    assert titles.split()[:3] == ["epoch", "train", "loss"]
    assert first.split()[0] == "1/1000"
    assert ("best" in first) == (values["val_auc"] == 1.0)
    assert "best" not in second


def test_the_time_left_is_that_of_recent_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_epochs(capsys, 1, epoch_seconds=0.01)[-1].endswith(" 10 s")
    assert print_epochs(capsys, 3, epoch_seconds=600)[-1].endswith(" 7 days")


def test_titles_come_again_in_a_long_log(capsys: pytest.CaptureFixture[str]) -> None:
    lines = print_epochs(capsys, 41)
    assert [number for number, line in enumerate(lines) if "train loss" in line] == [0, 21, 42]


def test_a_resumed_training_says_where_it_continues(capsys: pytest.CaptureFixture[str]) -> None:
    settings = TrainingConfig(epochs=9, early_stopping_patience=2)
    EpochTable(TrainerState(), settings).begin()
    assert capsys.readouterr().out == ""
    table = EpochTable(TrainerState(epoch=3, steps=2, best_val_auc=0.75, best_epoch=1), settings)
    table.begin()
    table.end()
    assert capsys.readouterr().out.splitlines() == [
        "continuing after epoch 3/9 and 2 steps; best val AUC 0.7500 (epoch 1)",
        "stopped early: no better val AUC in 2 epochs (early_stopping_patience)",
    ]
