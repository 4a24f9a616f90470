"""The loop itself, with a tracker that only remembers."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from src.data.dataset import Dataset, load_dataset
from src.errors import ConfigError, DataError, TrainingError
from src.training.checkpoint import CheckpointStore, TrainerState, load_checkpoint
from src.training.ddp import sync_batch_norm
from src.training.optim import rate_factor
from src.training.recorder import COLUMNS, EPOCH_METRICS, Recorder, Tracker
from src.training.setup import set_up
from src.training.trainer import Trainer
from src.utils.config import Config, TrainingConfig
from src.utils.distributed import ProcessGroup
from src.utils.runtime import determinism
from tests.images import write_npz


class Memory:
    """A tracker that keeps everything in lists."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.files: list[tuple[str | None, str]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        assert path.exists()
        self.files.append((folder, path.name))


def make_config(**changes: Any) -> Config:
    base: dict[str, Any] = {
        "training.epochs": 2,
        "training.batch_size": 8,
        "model.weights": "none",
        "training.device": "cpu",
    }
    base["model.name"] = "shufflenet_v2_x0_5"  # the smallest there is
    return Config().updated(base | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load_dataset(
        Config().data.model_copy(update={"root_dir": str(write_npz(folder / "d.npz"))}), folder / "c"
    )


def make_trainer(config: Config, dataset: Dataset, folder: Path, tracker: Tracker) -> Trainer:
    setup = set_up(config, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        setup.config,
        dataset,
        setup.context,
        setup.train_step,
        recorder=Recorder(
            CheckpointStore(folder / "checkpoints"),
            folder / "training_history.csv",
            tracker,
            in_background=config.training.save_in_background,
        ),
        extra={"run_id": "r"},
    )


def test_one_call_per_epoch_and_the_improvements(dataset: Dataset, folder: Path) -> None:
    memory = Memory()
    state = make_trainer(make_config(training__epochs=3), dataset, folder, memory).fit()
    assert [step for step, _ in memory.metrics] == [1, 2, 3]
    with (folder / "training_history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for (step, metrics), row in zip(memory.metrics, rows, strict=True):
        assert {name: float(row[name]) for name in COLUMNS[1:]} == {
            name: metrics[name] for name in COLUMNS[1:]
        }
        assert metrics.keys() - {"best_val_auc"} == {metric.name for metric in EPOCH_METRICS}
        assert metrics["images_per_second"] > 0
        best_so_far = max(m["val_auc"] for s, m in memory.metrics if s <= step)
        earlier = [m["val_auc"] for s, m in memory.metrics if s < step]
        improved = not earlier or best_so_far > max(earlier)
        assert metrics.get("best_val_auc") == (best_so_far if improved else None)
    assert state.best_val_auc == max(m["val_auc"] for _, m in memory.metrics)


def test_every_epoch_keeps_its_files(dataset: Dataset, folder: Path) -> None:
    memory = Memory()
    make_trainer(make_config(training__epochs=3), dataset, folder, memory).fit()
    expected: list[tuple[str | None, str]] = []
    for _, metrics in memory.metrics:
        expected += [(None, "training_history.csv"), ("checkpoints", "latest.pth")]
        expected += [("checkpoints", "best_model.pth")] * ("best_val_auc" in metrics)
    assert memory.files == expected


def test_same_seed_same_weights_another_seed_others(dataset: Dataset, folder: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        make_trainer(make_config(training__seed=seed), dataset, folder / name, Memory()).fit()
        found: dict[str, torch.Tensor] = load_checkpoint(folder / name / "checkpoints/latest.pth")[
            "model_state_dict"
        ]
        return found

    one, two, three = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["fc.weight"], three["fc.weight"])


def test_the_model_ends_with_the_best_weights(dataset: Dataset, folder: Path) -> None:
    trainer = make_trainer(make_config(training__epochs=4), dataset, folder, Memory())
    state = trainer.fit()
    best = load_checkpoint(folder / "checkpoints/best_model.pth")
    assert best["epoch"] == state.best_epoch
    now = trainer.context.model.state_dict()
    assert all(torch.equal(now[key], value) for key, value in best["model_state_dict"].items())


def test_early_stopping_counts_from_the_best_epoch(dataset: Dataset, folder: Path) -> None:
    # A rate this small leaves the ranking as it is, so epoch 1 stays the best or nearly so.
    config = make_config(
        training__epochs=50, training__learning_rate=1e-12, training__early_stopping_patience=2
    )
    state = make_trainer(config, dataset, folder, Memory()).fit()
    assert state.epoch == state.best_epoch + 2 < 50


def test_a_loss_that_is_no_number_ends_training(dataset: Dataset, folder: Path) -> None:
    trainer = make_trainer(make_config(training__learning_rate=1e30), dataset, folder, Memory())
    with pytest.raises(TrainingError, match=r"in epoch \d+ \(learning rate 1e\+30\)"):
        trainer.fit()


class Putting(nn.Module):
    """Uses an operation that torch does not have in a deterministic form, on no device."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        places = torch.zeros(1, dtype=torch.int64)
        return values + torch.zeros(1).put_(places, torch.zeros(1))


def test_an_operation_that_is_not_deterministic_is_named(dataset: Dataset, folder: Path) -> None:
    trainer = make_trainer(make_config(), dataset, folder / "a", Memory())
    model: Any = trainer.context.model
    model.fc = nn.Sequential(Putting(), model.fc)
    with (
        determinism(enabled=True),
        pytest.raises(TrainingError, match=r"put_ has no .* on cpu, .*; set training.deterministic=false"),
    ):
        trainer.fit()


def test_nan_never_becomes_best_and_never_sticks() -> None:
    state = TrainerState()
    values = [math.nan, 0.6, math.nan, 0.6, 0.7, math.inf]
    assert [state.record({"epoch": i, "val_auc": value}) for i, value in enumerate(values, 1)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert (state.best_epoch, state.best_val_auc, state.epoch) == (5, 0.7, 6)


def test_best_shares_its_bytes_with_latest_until_the_next_epoch(folder: Path) -> None:
    store = CheckpointStore(folder)
    store.save({"model_state_dict": {}, "epoch": 1}, is_best=True)
    assert store.latest.stat().st_ino == store.best.stat().st_ino
    store.save({"model_state_dict": {}, "epoch": 2}, is_best=False)
    assert load_checkpoint(store.best)["epoch"] == 1
    assert load_checkpoint(store.latest)["epoch"] == 2


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("owned"),))


def test_a_checkpoint_executes_nothing(folder: Path) -> None:
    torch.save({"model_state_dict": Bomb()}, folder / "bomb.pth")
    with pytest.raises(DataError, match=r"bomb\.pth: not a checkpoint"):
        load_checkpoint(folder / "bomb.pth")
    assert not (folder / "owned").exists()
    (folder / "text.pth").write_text("hello")
    with pytest.raises(DataError, match=r"text\.pth"):
        load_checkpoint(folder / "text.pth")


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"epochs": 10, "warmup_epochs": 2} | changes)


def test_cosine_after_warmup() -> None:
    config = settings()
    assert [rate_factor(step / 4, config, 1 / 4) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]
    assert rate_factor(2, config) == 1
    assert rate_factor(6, config) == pytest.approx(0.5)
    assert rate_factor(10, config) == pytest.approx(0)


def test_multistep_cuts_after_the_milestones() -> None:
    config = settings(schedule="multistep", milestones=(3, 5), warmup_epochs=0)
    factors = [rate_factor(epoch, config) for epoch in (0, 2.99, 3, 4.9, 5, 9)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    scaled = settings(schedule="multistep", milestones=(0.3, 0.5), warmup_epochs=0)
    assert [rate_factor(epoch, scaled) for epoch in (0, 2.99, 3, 4.9, 5, 9)] == factors
    longer = settings(schedule="multistep", milestones=(0.3, 0.5), warmup_epochs=0, epochs=20)
    assert [rate_factor(2 * epoch, longer) for epoch in (0, 2.99, 3, 4.9, 5, 9)] == factors


def test_one_epoch_is_not_all_warmup() -> None:
    assert rate_factor(0, settings(epochs=1)) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_optimizer_trains(optimizer: str, dataset: Dataset, folder: Path) -> None:
    config = make_config(training__optimizer=optimizer, training__epochs=1, training__learning_rate=1e-2)
    trainer = make_trainer(config, dataset, folder, Memory())
    before = trainer.context.model.state_dict()["conv1.0.weight"].clone()
    trainer.fit()
    assert not torch.equal(before, trainer.context.model.state_dict()["conv1.0.weight"])


def test_a_batch_larger_than_the_split_is_one_batch_said_once(dataset: Dataset) -> None:
    notes = set_up(make_config(training__batch_size=100), dataset).notes
    assert [note for note in notes if "100 is larger than the 32 training images" in note] == list(notes)


def test_rgb_model_on_four_classes(folder: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (2, 16, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(16) % 4
    np.savez(
        folder / "four.npz",
        train_images=images[0],
        train_labels=labels,
        val_images=images[1],
        val_labels=labels,
    )
    config = make_config(data__root_dir=str(folder / "four.npz"))
    state = make_trainer(config, load_dataset(config.data, folder / "c"), folder, Memory()).fit()
    assert 0 <= state.history[0]["val_auc"] <= 1
    assert "best_val_auc" in state.state_dict()


def test_bfloat16_is_not_used_where_torch_computes_it_wrong(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a CPU that has bfloat16; images of 16 px end as one pixel, which kernels of 3 reach beyond.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    small = make_config(model__name="resnet18", model__stem="imagenet", training__precision="auto")
    setup = set_up(small, dataset)
    assert setup.config.training.precision == "float32"
    assert [note for note in setup.notes if "bfloat16 on a CPU" in note]
    with pytest.raises(ConfigError, match=r"training\.precision: images of 16 px.*use float32"):
        set_up(small.updated({"training.precision": "bfloat16"}), dataset)
    assert set_up(small.updated({"model.stem": "small"}), dataset).config.training.precision == "bfloat16"


def test_bfloat16_is_not_used_where_it_is_slower(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    setup = set_up(make_config(model__name="mobilenet_v3_small", training__precision="auto"), dataset)
    assert (setup.config.training.precision, setup.context.autocast) == ("float32", None)
    assert not [note for note in setup.notes if "bfloat16" in note]


@pytest.mark.parametrize("first", [0, 1, 2, 3, 4])
def test_batches_prepared_together_are_those_prepared_alone(
    dataset: Dataset, folder: Path, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU does with small images; a training that is continued starts amid such a group."""
    pipeline = make_trainer(make_config(training__mixup_alpha=0.4), dataset, folder, Memory()).pipeline
    order = pipeline.order(1)
    alone = list(pipeline.load(1, order))[first:]
    monkeypatch.setattr(pipeline, "_group_size", 3)
    together = list(pipeline.load(1, order, first))
    assert len(order) == 4
    assert len(together) == len(alone)
    for batch, want in zip(together, alone, strict=True):
        torch.testing.assert_close(batch.images, want.images, rtol=0, atol=1e-6)
        assert torch.equal(batch.targets, want.targets)
        assert batch.shard.batch_length == want.shard.batch_length


def test_synchronized_batch_norm_is_refused_on_a_cpu(dataset: Dataset) -> None:
    config = make_config(training__sync_batchnorm=True)
    set_up(config, dataset)  # a single process has nothing to synchronize
    with pytest.raises(
        ConfigError, match=r"training\.sync_batchnorm: .* on GPUs only, and the device is cpu"
    ):
        set_up(config, dataset, group=ProcessGroup(0, 2, 0, 2))
    sync_batch_norm(nn.Sequential(nn.Linear(1, 1)), torch.device("cpu"))  # has none
