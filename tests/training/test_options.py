"""What each training option does to the weights of a real training."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.data.dataset import Dataset, load_dataset
from src.errors import ConfigError
from src.models.stem import head_path
from src.training.checkpoint import load_checkpoint
from src.training.optim import ModelEma
from src.training.recorder import COLUMNS
from src.training.scoring import score_split
from src.training.setup import set_up
from src.training.step import micro_batch_bounds
from src.training.trainer import Trainer
from src.utils.config import Config
from tests.images import make_images, write_npz
from tests.training.test_trainer import Memory, make_config, make_trainer

pytestmark = pytest.mark.slow

State = dict[str, Tensor]
PLAIN = {f"data__augment__{name}": 0.0 for name in ("rotation", "translation", "scale", "brightness")}
PLAIN |= {"data__augment__contrast": 0.0, "data__augment__horizontal_flip": False}
SGD = {"training__optimizer": "sgd", "training__learning_rate": 0.01, "training__warmup_epochs": 0}
SGD |= {"training__precision": "float32"}  # auto is bfloat16 where the CPU has it


def load(path: Path) -> Dataset:
    return load_dataset(Config().data.model_copy(update={"root_dir": str(path)}), path.parent / "cache")


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load(write_npz(folder / "d.npz"))


def unbalanced(folder: Path) -> Dataset:
    """26 images of class 0 and 9 of class 1 to train on."""
    arrays: dict[str, Any] = {}
    for seed, split in enumerate(("train", "val")):
        images, labels = make_images(52, 32, seed)
        kept = np.flatnonzero((labels == 0) | (np.arange(52) < 18))
        arrays |= {f"{split}_images": images[kept], f"{split}_labels": labels[kept]}
    np.savez(folder / "unbalanced.npz", **arrays)
    return load(folder / "unbalanced.npz")


def copied(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def trained(dataset: Dataset, folder: Path, **changes: Any) -> dict[str, Any]:
    """The last checkpoint of a run with these settings."""
    make_trainer(make_config(**changes), dataset, folder, Memory()).fit()
    return load_checkpoint(folder / "checkpoints/latest.pth")


def are_equal(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_frozen_backbone_stays_and_moves_afterwards(optimizer: str, dataset: Dataset, folder: Path) -> None:
    config = make_config(training__freeze_backbone_epochs=1, training__optimizer=optimizer)
    trainer = make_trainer(config, dataset, folder, Memory())
    start, head = copied(trainer.context.model), head_path(trainer.context.model)
    held = sum(len(group["params"]) for group in trainer.train_step.optimizer.param_groups)
    assert held == len(list(trainer.context.model.parameters()))
    frozen = trained(dataset, folder / "frozen", **options(config, training__epochs=1))["model_state_dict"]
    moved = {key for key, value in start.items() if not torch.equal(value, frozen[key])}
    assert moved == {f"{head}.weight", f"{head}.bias"}  # no running statistics, no decay
    trainer.fit()
    latest = load_checkpoint(folder / "checkpoints/latest.pth")["model_state_dict"]
    still = {key for key, value in start.items() if torch.equal(value, latest[key])}
    assert not [key for key in still if start[key].ndim > 1 or key.endswith("running_mean")]


def options(config: Config, **changes: Any) -> dict[str, Any]:
    """The settings of ``config`` with others on top, as ``make_config`` takes them."""
    return {key.replace(".", "__"): value for key, value in config.flat().items()} | changes


def test_freezing_random_weights_is_pointed_out(dataset: Dataset, folder: Path) -> None:
    config = make_config(training__freeze_backbone_epochs=1)
    setup = set_up(config, dataset)
    assert [note for note in setup.notes if "freezes random weights" in note]
    torch.save(setup.context.model.state_dict(), folder / "w.pth")
    assert set_up(config.updated({"model.weights": str(folder / "w.pth")}), dataset).notes == ()


def test_the_schedule_scales_both_rates_and_the_heads_is_logged(dataset: Dataset, folder: Path) -> None:
    memory = Memory()
    config = make_config(
        training__backbone_learning_rate=1e-4,
        training__warmup_epochs=0,
        training__schedule="multistep",
        training__milestones=[1],
    )
    trainer = make_trainer(config, dataset, folder, memory)
    trainer.fit()
    assert [metrics["learning_rate"] for _, metrics in memory.metrics] == pytest.approx([1e-3, 1e-4])
    head = set(trainer.context.model.get_submodule("fc").parameters())
    for group in trainer.train_step.optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-4 if head & set(group["params"]) else 1e-5)


def test_a_slower_backbone_moves_less(dataset: Dataset, folder: Path) -> None:
    changes = SGD | {"training__epochs": 1}
    start = set_up(make_config(**changes), dataset).context.model.state_dict()
    usual = trained(dataset, folder / "a", **changes)["model_state_dict"]
    slower = trained(dataset, folder / "b", **changes, training__backbone_learning_rate=1e-6)
    usual_way, slow_way = (
        float((end["conv1.0.weight"] - start["conv1.0.weight"]).norm())
        for end in (usual, slower["model_state_dict"])
    )
    assert slow_way == pytest.approx(1e-4 * usual_way, rel=0.5)


def test_class_weights_and_smoothing_reach_the_loss(folder: Path) -> None:
    dataset = unbalanced(folder)
    config = make_config(training__class_weights="balanced", training__label_smoothing=0.1)
    loss = set_up(config, dataset).train_step.loss
    assert loss.label_smoothing == 0.1
    assert loss.class_weights is not None
    torch.testing.assert_close(loss.class_weights, torch.tensor([35 / 52, 35 / 18]))


def test_balanced_weights_make_up_for_a_rare_class(folder: Path) -> None:
    """One step from a head of zeros: its bias moves by the difference of the classes' shares."""
    dataset = unbalanced(folder)
    changes = SGD | {"training__epochs": 1, "training__batch_size": 35, "training__momentum": 0.0}
    bias = {}
    for kind in ("none", "balanced"):
        config = make_config(**changes, training__class_weights=kind)
        trainer = make_trainer(config, dataset, folder / kind, Memory())
        nn.init.zeros_(trainer.context.model.get_parameter("fc.weight"))
        nn.init.zeros_(trainer.context.model.get_parameter("fc.bias"))
        trainer.fit()
        bias[kind] = trainer.context.model.get_parameter("fc.bias").tolist()
    step = 0.01 * (26 / 35 - 1 / 2)
    assert bias["none"] == pytest.approx([step, -step], rel=1e-4)
    assert bias["balanced"] == pytest.approx([0, 0], abs=1e-8)


def norms_before_steps(trainer: Trainer) -> list[float]:
    """Fills with the gradient's norm as each optimizer step finds it."""
    norms: list[float] = []

    def look(*_: object) -> None:
        gradients = [p.grad for p in trainer.context.model.parameters() if p.grad is not None]
        norms.append(float(nn.utils.get_total_norm(gradients)))

    trainer.train_step.optimizer.register_step_pre_hook(look)
    return norms


@pytest.mark.parametrize("scaled", [False, True])
def test_no_step_sees_a_longer_gradient(scaled: bool, dataset: Dataset, folder: Path) -> None:
    free = make_trainer(make_config(), dataset, folder / "free", Memory())
    free_norms = norms_before_steps(free)
    free.fit()
    limit = sorted(free_norms)[len(free_norms) // 2]
    trainer = make_trainer(make_config(training__clip_grad_norm=limit), dataset, folder / "clip", Memory())
    if scaled:  # as float16 has it: the length that counts is that of the gradient before scaling
        trainer.train_step = replace(trainer.train_step, scaler=torch.amp.GradScaler("cpu"))
    norms = norms_before_steps(trainer)
    trainer.fit()
    assert len(norms) == len(free_norms) == 8
    assert max(norms) == pytest.approx(limit, rel=1e-4)
    assert min(norms) < limit * 0.99  # shorter ones stay as they are
    assert max(free_norms) > limit * 1.01


def test_a_vision_transformer_learns_at_a_size_of_its_patches(folder: Path) -> None:
    path = write_npz(folder / "d.npz")
    config = make_config(**SGD, model__name="vit_b_16", data__root_dir=str(path), data__image_size=32)
    dataset = load_dataset(config.data, folder / "c")
    setup = set_up(config, dataset)
    images = setup.context.spec.normalize(dataset.batch("train", np.arange(8)) / 255)
    targets = torch.from_numpy(dataset.splits["train"].labels[:8])
    losses = [float(setup.train_step.step(setup.context, images, targets)) for _ in range(4)]
    assert losses[-1] < 0.8 * losses[0]


def states_after_steps(trainer: Trainer) -> list[State]:
    """Fills with the trained weights after each optimizer step."""
    states: list[State] = []
    trainer.train_step.optimizer.register_step_post_hook(
        lambda *_: states.append(copied(trainer.context.model))
    )
    return states


def test_the_average_is_validated_kept_and_served(dataset: Dataset, folder: Path) -> None:
    trainer = make_trainer(make_config(training__ema_decay=0.7), dataset, folder, Memory())
    states = states_after_steps(trainer)
    state = trainer.fit()
    latest = load_checkpoint(folder / "checkpoints/latest.pth")
    assert are_equal(latest["trained_model_state_dict"], states[-1])
    assert latest["averaged_steps"] == len(states) == 8
    for key, value in latest["model_state_dict"].items():
        average = states[0][key]
        for later in states[1:]:
            average = 0.7 * average + 0.3 * later[key] if value.is_floating_point() else later[key]
        torch.testing.assert_close(value, average, rtol=1e-4, atol=1e-6)
    best = load_checkpoint(folder / "checkpoints/best_model.pth")
    assert are_equal(copied(trainer.context.model), best["model_state_dict"])
    val = score_split(trainer.context, trainer.loader, "val", 0.5, 8).scores.named("val")
    row = state.history[state.best_epoch - 1]
    assert val == {name: row[name] for name in val}


def test_averaging_leaves_training_as_it_is(dataset: Dataset, folder: Path) -> None:
    plain = trained(dataset, folder / "a")
    averaged = trained(dataset, folder / "b", training__ema_decay=0.7)
    assert are_equal(averaged["trained_model_state_dict"], plain["model_state_dict"])
    assert not are_equal(averaged["model_state_dict"], plain["model_state_dict"])
    assert averaged.keys() - plain.keys() == {"trained_model_state_dict", "averaged_steps"}


def test_whole_numbers_are_not_averaged() -> None:
    """Swin finds its position biases by such a buffer; 0.9 n + 0.1 n of the same n is cut to n - 1."""
    model = nn.BatchNorm2d(1)
    model.register_buffer("index", torch.arange(169))
    average = ModelEma(model, 0.9)
    for _ in range(20):
        average.update_parameters(model)
    assert torch.equal(average.module.get_buffer("index"), torch.arange(169))


def test_an_average_over_more_steps_than_there_are_is_pointed_out(dataset: Dataset) -> None:
    (note,) = set_up(make_config(training__ema_decay=0.999), dataset).notes
    assert "over about 1,000 steps, and the run has 8" in note


ALL = {
    "training__epochs": 4,
    "training__freeze_backbone_epochs": 1,
    "training__backbone_learning_rate": 1e-4,
    "training__label_smoothing": 0.1,
    "training__class_weights": "balanced",
    "training__clip_grad_norm": 1.0,
    "training__ema_decay": 0.7,
    "training__gradient_accumulation_steps": 2,
    "training__mixup_alpha": 0.4,
    "model__name": "mobilenet_v2",  # has dropout
}


class Copies(Memory):
    """Keeps the checkpoints of every epoch, as if the run had been killed after it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        super().log_metrics(metrics, step)
        shutil.copytree(self.folder / "checkpoints", self.folder / f"{step}/checkpoints")


def test_a_checkpoint_holds_all_that_an_exact_continuation_needs(folder: Path) -> None:
    """With all options on, while the backbone is still frozen and afterwards."""
    dataset, config = unbalanced(folder), make_config(**ALL)
    make_trainer(config, dataset, folder, Copies(folder)).fit()
    whole = load_checkpoint(folder / "checkpoints/latest.pth")
    for epoch in (1, 2):
        rest = make_trainer(config, dataset, folder / str(epoch), Memory())
        latest = folder / str(epoch) / "checkpoints/latest.pth"
        rest.restore(torch.load(latest, weights_only=True))
        assert scores(rest.fit().history) == scores(whole["history"])
        again = load_checkpoint(latest)
        for key in ("model_state_dict", "trained_model_state_dict"):
            assert are_equal(again[key], whole[key])


def scores(history: list[dict[str, float]]) -> list[list[float]]:
    """Without what the clock says."""
    return [[row[name] for name in COLUMNS] for row in history]


@pytest.mark.parametrize(
    ("count", "passes"),
    [(2, [2]), (32, [32]), (33, [33]), (34, [32, 2]), (63, [32, 31]), (64, [32, 32]), (65, [32, 33])],
)
def test_no_pass_has_a_single_image(count: int, passes: list[int]) -> None:
    parts = torch.arange(count).tensor_split(micro_batch_bounds(count, 32))
    assert [len(part) for part in parts] == passes


def without_dropout(trainer: Trainer) -> Trainer:
    for module in trainer.context.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        PLAIN,
        {
            "training__class_weights": "balanced",
            "training__label_smoothing": 0.1,
            "training__mixup_alpha": 0.4,
            "training__clip_grad_norm": 1.0,
        },
    ],
    ids=["plain", "all"],
)
def test_two_passes_of_ten_are_one_of_twenty(changes: dict[str, Any], folder: Path) -> None:
    """On a network without batch norm, to 1e-6; 35 images make steps of 10 + 10 and 10 + 5."""
    dataset = unbalanced(folder)
    changes = SGD | changes | {"model__name": "squeezenet1_1"}
    steps, histories, schedules = [], [], []
    for size, passes in ((20, 1), (10, 2)):
        sizes = {"training__batch_size": size, "training__gradient_accumulation_steps": passes}
        trainer = make_trainer(make_config(**changes | sizes), dataset, folder / str(size), Memory())
        steps.append(states_after_steps(without_dropout(trainer)))
        histories.append(trainer.fit().history)
        schedules.append(trainer.train_step.schedule.state_dict())
    assert [len(states) for states in steps] == [4, 4]
    for one, two in zip(*steps, strict=True):
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=0, atol=1e-6)
    for name in ("train_loss", "val_loss"):
        one, two = ([row[name] for row in history] for history in histories)
        assert one == pytest.approx(two, rel=1e-5)
    assert schedules[0] == schedules[1]


def test_a_batch_that_is_larger_with_its_passes_is_said_too(dataset: Dataset) -> None:
    notes = set_up(make_config(training__gradient_accumulation_steps=5), dataset).notes
    assert notes == (
        "training.batch_size 8 x gradient_accumulation_steps 5 is larger than the 32 training images: "
        "each epoch is one step",
    )


def test_mixed_runs_repeat_bit_for_bit(dataset: Dataset, folder: Path) -> None:
    changes = {"training__mixup_alpha": 0.4, "training__epochs": 1}
    one = trained(dataset, folder / "a", **changes)
    two = trained(dataset, folder / "b", **changes)
    other = trained(dataset, folder / "c", training__epochs=1)
    assert are_equal(one["model_state_dict"], two["model_state_dict"])
    assert scores(one["history"]) == scores(two["history"])
    assert not are_equal(one["model_state_dict"], other["model_state_dict"])


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_a_cpu_trains_without_graphs(
    dataset: Dataset, folder: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(dataset, folder / setting, training__compile=setting)
    assert "CUDA" not in capsys.readouterr().err


def test_graphs_are_refused_on_a_cpu(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"training\.compile: .* the device is cpu; use auto or off"):
        set_up(make_config(training__compile="on"), dataset)
