"""Whole trainings over HTTP, by the real commands, with a server that is really killed."""

import csv
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Run

from src import promote, store, train
from src.evaluation.predictions import read_predictions
from src.training.recorder import COLUMNS
from tests.conftest import Process
from tests.flows.processes import TINY, start, wait_for_epoch
from tests.servers import Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("npz")]
NAMED = [*TINY, "--set", "experiment.name=mine", "--set", "data.on_leak=allow"]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start_training(folder: Path, server: Server, started: list[Process], epochs: int, **env: str) -> Process:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLPROJECT_SERVER_PATIENCE": "1"} | env
    options = [*NAMED, "--set", f"training.epochs={epochs}"]
    process = start(folder, "-m", "src.train", *options, group=False, **env)
    started.append(process)
    wait_for_epoch(folder, process)
    return process


def only_run() -> Run:
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    return run


def check_epochs(run: Run, epochs: int, folder: Path) -> None:
    """One value per metric and epoch, that of the CSV; the files are those on disk."""
    client, run_id = mlflow.MlflowClient(), run.info.run_id
    with (folder / "outputs/logs/mine/training_history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    for name in COLUMNS[1:]:
        points = client.get_metric_history(run_id, name)
        assert [(p.step, p.value) for p in points] == [(int(r["epoch"]), float(r[name])) for r in rows]
    there = Path(mlflow.artifacts.download_artifacts(run_id=run_id))
    outputs = folder / "outputs"
    for name in ("config.yaml", "training_history.csv"):
        assert (there / name).read_bytes() == (outputs / "logs/mine" / name).read_bytes()
    for path in (p for p in (outputs / "mine").rglob("*") if p.is_file()):
        if path.name in ("latest.prev.pth", "run_id"):  # of use on disk alone
            continue
        assert (there / path.relative_to(outputs / "mine")).read_bytes() == path.read_bytes()
    assert {path.name for path in (outputs / "mine").iterdir()} >= {"checkpoints"}
    assert not (outputs / "mine/undelivered").exists()


def check_finished(run: Run, folder: Path) -> None:
    """The last status, and one logged model that gives the stored predictions."""
    client = mlflow.MlflowClient()
    assert run.info.status == "FINISHED"
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    (logged,) = [m for m in client.search_logged_models(["0"]) if m.source_run_id == run.info.run_id]
    assert (logged.model_id, logged.status) == (output.model_id, "READY")
    assert logged.params["training.batch_size"] == "8"
    model = mlflow.pytorch.load_model(f"models:/{output.model_id}")
    pixels = torch.from_numpy(np.load(folder / "small.npz")["val_images"])[:, None]
    stored = read_predictions(folder / "outputs/mine/predictions/val.csv")
    given = model(pixels).detach().numpy()
    assert np.allclose(np.sort(given[:, 1]), np.sort(stored.probabilities[:, 1]), atol=1e-5)


@pytest.mark.usefixtures("server")
def test_over_http_from_training_to_a_champion(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*NAMED, "--set", "training.epochs=2", "--promote"]) == 0
    captured = capsys.readouterr()
    assert "warning" not in captured.err
    assert "verified by logged model" in captured.out
    check_epochs(only_run(), 2, folder)
    check_finished(only_run(), folder)
    assert promote.main(["--check"]) == 0
    version = mlflow.MlflowClient().get_model_version_by_alias("shufflenet_v2_x0_5_A", "champion")
    assert version.run_id == only_run().info.run_id
    info: Any = mlflow.models.get_model_info("models:/shufflenet_v2_x0_5_A@champion")
    assert (info.run_id, f"models:/{info.model_id}") == (version.run_id, version.source)
    assert info.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 1, 16, 16)}
    assert store.main(["sync", "outputs/mine"]) == 0


def test_a_server_that_never_returns_ends_no_training(
    folder: Path, server: Server, no_process_is_left: list[Process]
) -> None:
    process = start_training(folder, server, no_process_is_left, 5)
    server.kill()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "best val AUC" in out
    assert errors.count("has not responded") == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert "python -m src.store sync outputs/mine" in errors.splitlines()[-1]
    Path("outputs").rename("moved")
    server.start()
    assert only_run().info.status == "RUNNING"
    assert store.main(["sync", "moved/mine"]) == 0
    Path("moved").rename("outputs")
    check_epochs(only_run(), 5, folder)
    check_finished(only_run(), folder)


def test_killed_over_http_then_delivered(
    folder: Path,
    server: Server,
    no_process_is_left: list[Process],
    capsys: pytest.CaptureFixture[str],
) -> None:
    process = start_training(folder, server, no_process_is_left, 5000)
    history = Path("outputs/logs/mine/training_history.csv")
    while not history.exists() or len(history.read_text().splitlines()) < 5:
        time.sleep(0.05)
    assert store.main(["sync", "outputs/mine"]) == 1
    assert "wait for its end" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.main(["sync", "outputs/mine"]) == 0
    run = only_run()
    assert run.info.status == "KILLED"
    assert "ended without a final status" in run.data.tags["error"]
    rows = history.read_text().splitlines()[1:]
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_auc")
    # The kill may have come between the table's last row and its delivery.
    assert [p.step for p in points] in ([*range(1, len(rows) + 1)], [*range(1, len(rows))])
    there = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
    assert torch.load(there / "checkpoints/latest.pth")["epoch"] in (len(rows), len(rows) - 1)
    assert not Path("outputs/mine/undelivered").exists()


@pytest.mark.exhaustive
def test_a_server_that_comes_back_while_training_goes_on(
    folder: Path, server: Server, no_process_is_left: list[Process]
) -> None:
    switch = {"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true", "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}
    process = start_training(folder, server, no_process_is_left, 100, **switch)
    server.kill()
    server.start()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert errors.count("has not responded") == errors.count("answers again") == 1
    check_epochs(only_run(), 100, folder)
    check_finished(only_run(), folder)
    points = mlflow.MlflowClient().get_metric_history(
        only_run().info.run_id, "system/cpu_utilization_percentage"
    )
    assert [point.step for point in points] == list(range(len(points)))
    assert len(points) > 3
