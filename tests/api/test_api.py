"""Train, promote and apply a model from Python, in a program with settings of its own."""

import asyncio
import logging
import os
import random
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from sqlalchemy import Engine, event

from src import extract, predict
from src.api import (
    Classifier,
    Config,
    ConfigError,
    DataError,
    MlprojectWarning,
    ModelError,
    PromotionError,
    Run,
    TrainingError,
    load,
    promote,
    train,
)
from src.tracking.sqlite_locks import _connect
from tests.conftest import ROOT, clean_environment
from tests.images import make_images, write_folder
from tests.stores import place_store

pytestmark = pytest.mark.slow
MODEL = "shufflenet_v2_x0_5"
NAME = f"{MODEL}_A"
SETTINGS = {
    "model": {"name": MODEL, "weights": "none"},
    "data": {"root_dir": "d"},
    "training.epochs": 1,
    "training.batch_size": np.int64(8),
}


def state() -> dict[str, Any]:
    """Everything of the process that a call must leave as it was."""
    loggers = {n: x for n, x in logging.root.manager.loggerDict.items() if isinstance(x, logging.Logger)}
    active, last = mlflow.active_run(), mlflow.last_active_run()
    return {
        "environment": dict(os.environ),
        "loggers": {name: (one.level, one.disabled, list(one.handlers)) for name, one in loggers.items()},
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "gradients": torch.is_grad_enabled(),
        "torch's generator": torch.get_rng_state().tolist(),
        "generators": (random.getstate(), np.random.get_state()[1].tolist()),  # type: ignore[index]
        "folder": Path.cwd(),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "backend": mpl.get_backend(auto_select=False),
        "runs": [run and run.info.run_id for run in (active, last)],
        "waits for locks": event.contains(Engine, "do_connect", _connect),
        "excepthook": sys.excepthook,
        "path": list(sys.path),
    }


def check_same(before: dict[str, Any]) -> None:
    after = state()
    after["loggers"] = {name: after["loggers"][name] for name in before["loggers"]}
    assert after == before


@pytest.fixture(scope="module")
def folder_of_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Run]]:
    """A folder, and the run that was trained and promoted there by a program with unusual settings."""
    folder = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        for key, value in clean_environment(folder / "torch").items():
            patch.setenv(key, value)
        write_folder(folder / "d", counts={"train": 24, "val": 16, "test": 16}, size=32)
        place_store(folder / "mlflow.db")
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True, warn_only=True)
        logging.getLogger("mlflow").setLevel(logging.DEBUG)
        before_handler = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            with mlflow.start_run() as own, torch.no_grad():
                before = state()
                run = train(SETTINGS, settings={"experiment.name": "first"})
                check_same(before)
                assert mlflow.active_run().info.run_id == own.info.run_id  # type: ignore[union-attr]
                (result,) = promote(MODEL, "A")
                check_same(before)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.use_deterministic_algorithms(False)
            signal.signal(signal.SIGTERM, before_handler)
        assert (result.name, result.action, result.version) == (NAME, "promoted", 1)
        assert result.yaml == folder / f"config/best_hparams/{NAME}.yaml"
        yield folder, run


@pytest.fixture
def run(folder_of_run: tuple[Path, Run], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    assert folder.exists()  # the environment is clean
    monkeypatch.chdir(folder_of_run[0])
    return folder_of_run[1]


def test_a_run_is_that_of_the_command(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    stored = mlflow.MlflowClient().get_run(run.run_id)
    assert run.status == stored.info.status == "FINISHED"
    assert run.metrics == stored.data.metrics
    assert "mlflow.parentRunId" not in stored.data.tags
    assert run.outputs == Path.cwd() / "outputs/first"
    assert len(pd.read_csv(run.history)) == run.config.training.epochs == 1
    assert run.best_checkpoint.exists()
    assert run.latest_checkpoint.exists()
    # The same by the command, in the same process: not a bit differs.
    from src.train import main

    options = ["--model", MODEL, "--data", "d", "--epochs", "1", "--set", "model.weights=none"]
    assert main([*options, "--set", "training.batch_size=8", "--set", "experiment.name=second"]) == 0
    weights = [
        torch.load(f"outputs/{name}/checkpoints/latest.pth")["model_state_dict"]
        for name in ("first", "second")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    capfd.readouterr()


def test_quiet_unless_asked(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    before = state()
    model = load(run)
    model.predict("d")
    promote(dry_run=True)
    assert capfd.readouterr() == ("", "")
    load(run, verbose=True)
    promote(check=True, verbose=True)
    assert capfd.readouterr().out.splitlines() == [
        f"run {run.run_id}: neg, pos, threshold 0.5000, on cpu",
        f"{NAME}: YAML, registry and history agree",
    ]
    check_same(before)


def by_command(command: Any, output: str, *options: str) -> pd.DataFrame:
    assert command.main([*options, "--model", MODEL, "--modality", "A", "--output", output]) == 0
    return pd.read_parquet(output)


def test_tables_are_those_of_the_commands(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    model = load(f"models:/{NAME}@champion")
    assert (model.classes, model.modality, model.threshold) == (("neg", "pos"), "A", 0.5)
    assert (model.run_id, model.version) == (run.run_id, 1)
    expected = by_command(predict, "p.parquet", "--input", "d")
    pd.testing.assert_frame_equal(model.predict("d"), expected)
    for reference in (f"models:/{NAME}/1", f"runs:/{run.run_id}", run.run_id, run.best_checkpoint):
        pd.testing.assert_frame_equal(load(reference).predict(Path("d")), expected)
    pd.testing.assert_frame_equal(model.features("d"), by_command(extract, "f.parquet", "--input", "d"))
    layer = by_command(extract, "l.parquet", "--input", "d", "--layer", "stage2")
    pd.testing.assert_frame_equal(model.features("d", layer="stage2"), layer)
    capfd.readouterr()


def similar(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Batches of other images round differently."""
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-6)


def test_lists_and_tables_keep_their_order(run: Run) -> None:
    model = load(run)
    expected = model.predict("d").set_index("image")
    names = list(expected.index[::-1])
    found = model.predict([f"d/{name}" for name in names])
    assert list(found["image"]) == [f"d/{name}" for name in names]
    columns = ["sample", "p_neg", "p_pos", "decision"]
    similar(found[columns], expected.loc[names][columns].reset_index(drop=True))
    table = pd.DataFrame({"path": [Path("d") / name for name in names], "label": "neg", "age": 3})
    table.index = pd.Index(range(100, 100 + len(table)))
    table.loc[101, "label"] = None
    table["patient_id"] = [float(number) for number in range(len(table))]
    found = model.predict(table)
    assert list(found.index) == list(table.index)
    assert list(found["patient"][:2]) == ["0", "1"]
    assert found["label"].isna().sum() == 1
    similar(found[["p_pos"]].reset_index(drop=True), expected.loc[names][["p_pos"]].reset_index(drop=True))


def test_pixels_are_treated_like_files(run: Run) -> None:
    model = load(run)
    images, _ = make_images(16, 32, 2)
    names = [f"d/A/test/{('neg', 'pos')[i % 2]}/p{i // 2:03d}_{i}.png" for i in range(16)]
    files = model.predict(names)
    found = model.predict(images[:, None])
    assert list(found["image"]) == [str(number) for number in range(16)]
    assert list(found["sample"]) == list(files["sample"])
    assert list(found["p_pos"]) == list(files["p_pos"])
    colored = model.predict(np.repeat(images[:, None], 3, axis=1))
    similar(colored[["p_pos"]], files[["p_pos"]])
    from PIL import Image

    wide = np.tile(images[0], (1, 2))
    Image.fromarray(wide).save("wide.png")
    assert list(model.predict(wide[None, None])["p_pos"]) == list(model.predict("wide.png")["p_pos"])


def test_images_that_cannot_be_read(run: Run) -> None:
    model, good = load(run), "d/A/test/neg/p000_0.png"
    Path("broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(
        DataError, match=r"images that cannot be read: 1; the first: .*broken.png.*on_bad_ima"
    ):
        model.predict([good, "broken.png"])
    with pytest.warns(MlprojectWarning, match=r"broken.png") as caught:
        found = model.predict(["broken.png", good], on_bad_image="skip")
    assert caught[0].filename == __file__
    assert list(found["image"]) == [good]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 1, 32, 32)), r"\(2, 1, 32, 32\) of float64 is given; expected uint8"),
        (np.zeros((2, 32, 32), np.uint8), "expected uint8"),
        (np.zeros((2, 2, 32, 32), np.uint8), "with 1 or 3 channels"),
        (np.zeros((0, 1, 32, 32), np.uint8), "expected uint8"),
        ("nowhere", "nowhere: not found; expected an image"),
        ([], "no images"),
        (pd.DataFrame({"file": ["a.png"]}), "no column path"),
        (3, "a int is given; expected a path"),
    ],
)
def test_what_is_no_input(run: Run, images: Any, said: str) -> None:
    model, before = load(run), state()
    with pytest.raises(DataError, match=said):
        model.predict(images)
    check_same(before)


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        (
            {"training": {"epoch": 3}},
            ConfigError,
            "training.epoch: unknown key; did you mean training.epochs",
        ),
        ({"model.name": "resnet999"}, ModelError, "resnet999"),
        ({"data.root_dir": "nowhere"}, DataError, "nowhere: not found; --data takes"),
        ("missing.yaml", ConfigError, "missing.yaml: config file not found"),
    ],
)
def test_refused_before_training(run: Run, config: Any, kind: type[Exception], said: str) -> None:
    assert run
    before = state()
    with pytest.raises(kind, match=said):
        train(config)
    check_same(before)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("models:/other@champion", f"other: not registered, and {NAME} is"),
        (f"models:/{NAME}/7", "no version 7; versions: 1"),
        (f"models:/{NAME}@previous", "no version has the alias previous"),
        ("models:/m-abc", "expected models:/NAME@champion"),
        ("no.pth", "no.pth"),
    ],
)
def test_what_is_no_model(run: Run, reference: str, said: str) -> None:
    assert run
    with pytest.raises(Exception, match=said) as caught:
        load(reference)
    assert type(caught.value).__module__ == "src.errors"


def test_options_of_promote(run: Run) -> None:
    assert run
    with pytest.raises(ConfigError, match="expected a number between 0 and 1"):
        promote(min_auc=2)
    with pytest.raises(ConfigError, match="rollback needs model and modality"):
        promote(rollback=True)
    yaml = Path(f"config/best_hparams/{NAME}.yaml")
    text = yaml.read_text()
    yaml.write_text("- no config")
    with pytest.raises(PromotionError, match=NAME) as caught:
        promote()
    assert [result.action for result in caught.value.results] == ["failed"]
    yaml.write_text(text)


def test_a_failed_training_leaves_nothing(run: Run) -> None:
    before = state()
    with pytest.raises(TrainingError, match="the training loss became"):
        train(SETTINGS, settings={"training.learning_rate": 1e30, "training.epochs": 3})
    check_same(before)
    assert mlflow.search_runs(output_format="list")[0].info.status == "FAILED"
    assert run


def test_ctrl_c_ends_the_run_killed_and_resumable(run: Run) -> None:
    before = state()
    threading.Thread(target=interrupt_once_training).start()
    with pytest.raises(KeyboardInterrupt):
        train(SETTINGS, settings={"training.epochs": 200, "experiment.name": "stopped"})
    check_same(before)
    (stopped,) = mlflow.search_runs(filter_string="status = 'KILLED'", output_format="list")
    with pytest.raises(ConfigError, match="may only be raised"):
        train(resume=stopped.info.run_id, epochs=1)
    assert run


def interrupt_once_training() -> None:
    while not Path("outputs/stopped/checkpoints/latest.pth").exists():
        threading.Event().wait(0.1)
    signal.raise_signal(signal.SIGINT)


def test_in_a_thread_and_in_a_running_loop(run: Run) -> None:
    """As in a notebook, where cells run within a loop; and in a server, where they run in threads."""
    before = state()

    async def both() -> tuple[Run, pd.DataFrame]:
        model: Classifier = await asyncio.to_thread(load, run)
        return await asyncio.to_thread(train, Config(), settings=of_first()), model.predict("d")

    trained, table = asyncio.run(both())
    check_same(before)
    assert trained.metrics["best_val_auc"] == run.metrics["best_val_auc"]
    assert len(table) == 56


def of_first() -> dict[str, Any]:
    return {
        "model.name": MODEL,
        "model.weights": "none",
        "data.root_dir": "d",
        "training.epochs": 1,
        "training.batch_size": 8,
    }


def test_the_example_of_the_readme(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"## From Python\n.*?```python\n(.*?)```", text, re.DOTALL)
    small = {
        "mlproject.api": "src.api",
        "resnet18": MODEL,
        '"demo"': '"d"',
        '{"epochs": 2}': '{"epochs": 1}, "model": {"weights": "none"}',
        "min_auc=0.5": "min_auc=0",
    }
    for written, used in small.items():
        assert written in example
        example = example.replace(written, used)
    write_folder(folder / "d", counts={"train": 8, "val": 8}, size=16)
    place_store(folder / "mlflow.db")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("FINISHED ")
    assert "promoted 1 " in printed
    assert "('neg', 'pos') 0.5" in printed
