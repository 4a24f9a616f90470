"""What only a GPU shows; on a machine without one nothing here runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.data.dataset import load_dataset
from src.errors import ConfigError
from src.training.trainer import Trainer
from src.utils.runtime import determinism
from src.verification.run_digest import digest
from tests.images import write_npz
from tests.training.test_together import BASE, EPOCHS, EQUAL, EXACT, launch
from tests.training.test_trainer import Memory, make_config, make_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SYNCED = {"training.sync_batchnorm": True}
SAME_AS_OTHERS = EQUAL | {
    "batch norm": {"model.name": "resnet18"} | SYNCED,
    "everything, batch norm": EQUAL["everything"] | {"model.name": "resnet18"} | SYNCED,
}
PRECISE = {"training.precision": "float32", "training.learning_rate": 1e-5}


def run(folder: Path, tasks: dict[str, dict[str, Any]], *flags: str, resume: bool = False) -> dict[str, Any]:
    write_npz(folder / "small.npz", size=32, train=35, val=19, test=0)
    write_npz(folder / "few.npz", size=32, train=35, val=3, test=0)
    settings = {name: BASE | {"training.device": "cuda"} | changes for name, changes in tasks.items()}
    return launch(folder, 1, settings, *flags, resume=resume)[0]


@pytest.mark.parametrize("flags", [[], ["--forced"]], ids=["alone", "replicated"])
def test_an_interrupted_training_goes_on_to_the_same_bits(folder: Path, flags: list[str]) -> None:
    base = {"model.name": "resnet18", "training.checkpoint_every_minutes": 1e-9, "training.precision": "auto"}
    tasks = {name: base | changes for name, changes in EXACT.items()}
    tasks |= {f"{name}, synchronized": tasks[name] | SYNCED for name in EXACT}
    tasks["float16"] = base | {"training.precision": "float16"}
    found = run(folder, tasks, *flags, resume=True)
    for name in tasks:
        assert [place.partition(",")[0] for place, _ in found[name]["resumed"]] == EPOCHS
        for place, summary in found[name]["resumed"]:
            assert summary == found[name]["whole"], (name, place)


@pytest.mark.parametrize("other", [{"training.device": "cpu"}, "--forced"], ids=["cpu", "replicated"])
def test_a_gpu_gives_what_others_give(folder: Path, other: dict[str, str] | str) -> None:
    tasks = {name: changes | PRECISE for name, changes in SAME_AS_OTHERS.items()}
    here = run(folder, tasks)
    if isinstance(other, str):
        there = run(folder, tasks, other)
    else:
        there = run(folder, {name: changes | other for name, changes in tasks.items()})
    for name in tasks:
        rows, wanted = (found[name]["whole"]["history"] for found in (here, there))
        for row, want in zip(rows, wanted, strict=True):
            for metric in ("train_loss", "val_loss"):
                assert row[metric] == pytest.approx(want[metric], abs=1e-3), (name, metric)


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "training__class_weights": "balanced",
        "training__mixup_alpha": 0.4,
        "training__ema_decay": 0.9,
        "training__clip_grad_norm": 1.0,
    },
    "float16": {"training__precision": "float16", "training__clip_grad_norm": 1.0},
    "accumulated": {"training__gradient_accumulation_steps": 3, "training__batch_size": 4},
    "dropout": {"model__name": "mobilenet_v2"},
}


def gpu_trainer(folder: Path, name: str, **changes: Any) -> Trainer:
    path = write_npz(folder / "d.npz", size=32, train=99, val=20, test=0)  # 13 batches, the last smaller
    base = {"training__device": "cuda", "data__root_dir": str(path), "model__name": "resnet18"}
    config = make_config(**(base | changes))
    return make_trainer(config, load_dataset(config.data, folder / "c"), folder / name, Memory())


def weights_after(folder: Path, name: str, **changes: Any) -> str:
    with determinism(enabled=True):
        trainer = gpu_trainer(folder, name, **changes)
        trainer.fit()
    return digest(dict(trainer.context.model.state_dict()) | {"seen": torch.tensor(trainer.state.best_epoch)})


@pytest.fixture(params=[1, 3])
def group_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are prepared together; small, so that an epoch has several groups."""
    monkeypatch.setattr("src.training.pipeline._BATCHES_AT_ONCE", request.param)


@pytest.fixture
def sync_debug_mode() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("sync_debug_mode", "group_size")
@pytest.mark.parametrize("cache", ["auto", "off"])
@pytest.mark.parametrize("name", RECIPES)
def test_no_step_waits_for_the_device(folder: Path, name: str, cache: str) -> None:
    trainer = gpu_trainer(folder, "a", data__device_cache=cache, **RECIPES[name])
    assert ("train" in trainer.loader.resident) == (cache == "auto")
    trainer.state.loss_sum = torch.zeros((), device="cuda")
    order = trainer.pipeline.order(1)
    trainer._prepare_model(1)
    for number, batch in enumerate(trainer.pipeline.load(1, order)):
        if number == 1:  # the first step allocates what the others use again
            torch.cuda.set_sync_debug_mode("error")
        trainer.state.loss_sum += trainer._step(batch)
    torch.cuda.set_sync_debug_mode("default")
    assert number >= 8
    assert torch.isfinite(trainer.state.loss_sum)


@pytest.mark.usefixtures("group_size")
@pytest.mark.parametrize("name", RECIPES)
def test_neither_the_cache_nor_cuda_graphs_change_a_bit(folder: Path, name: str) -> None:
    found = {
        (cache, graphs): weights_after(
            folder, f"{cache}-{graphs}", data__device_cache=cache, training__compile=graphs, **RECIPES[name]
        )
        for cache in ("auto", "off")
        for graphs in ("auto", "off")
    }
    assert len(set(found.values())) == 1, found


def test_images_that_do_not_fit_are_streamed(folder: Path) -> None:
    trainer = gpu_trainer(folder, "a", data__device_cache=1e-9)
    assert trainer.loader.resident == ()
    assert trainer.fit().epoch == 2


FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_16",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_the_same_as_a_graph(folder: Path, name: str) -> None:
    size = {"inception_v3": 96, "maxvit_t": 224}.get(name, 64)
    settings: dict[str, Any] = {"model__name": name, "data__image_size": size, "training__epochs": 1}
    graphs = weights_after(folder, "on", training__compile="on", **settings)
    assert graphs == weights_after(folder, "off", training__compile="off", **settings)


def test_graphs_are_refused_where_they_are_not_possible(folder: Path) -> None:
    with pytest.raises(ConfigError, match="gradient_accumulation_steps is more than 1; use auto or off"):
        gpu_trainer(folder, "a", training__compile="on", training__gradient_accumulation_steps=2)


class Waiting(torch.nn.Module):
    """Reads a value from the device, which no graph can do."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * float(values.sum() > -1e9)


def test_a_model_that_waits_for_the_device_trains_without_graphs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = gpu_trainer(folder, "a", model__name="mobilenet_v2", data__device_cache="off")
    model: Any = trainer.context.model
    model.classifier[0] = Waiting()  # in place of its dropout
    assert trainer.fit().epoch == 2
    assert "training without CUDA graphs: called a synchronizing" in capsys.readouterr().err
    assert torch.cuda.get_sync_debug_mode() == 0
