"""What only real processes show: exit statuses, signals, two at once, ``mlflow run``."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run as MlflowRun

from tests.conftest import ROOT, Run, clean_environment, write_folder

# The smallest model: these tests are about processes, not about what is learnt.
TINY = ["--data", "small.npz", "--model", "shufflenet_v2_x0_5", "--epochs", "1"]
TINY += ["--set", "training.batch_size=8", "--set", "model.weights=none"]
STORES = {"sqlite": "", "file": "./mlruns"}


def only_run(folder: Path, store: str = "") -> MlflowRun:
    (run,) = runs(folder, store)
    return run


def runs(folder: Path, store: str = "") -> list[MlflowRun]:
    if store:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient(f"file://{folder}/mlruns" if store else f"sqlite:///{folder}/mlflow.db")
    return list(client.search_runs(["0"]))


def start(folder: Path, *args: str, group: bool = False, **env: str) -> "subprocess.Popen[str]":
    environment = clean_environment(folder / "torch") | env
    return subprocess.Popen(
        [sys.executable, *args],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


@pytest.mark.parametrize("store", STORES)
@pytest.mark.usefixtures("npz")
def test_two_at_once_in_a_fresh_folder(folder: Path, store: str) -> None:
    env: dict[str, Any] = {"MLFLOW_TRACKING_URI": STORES[store]} if STORES[store] else {}
    both = [start(folder, "-m", "src.train", *TINY, **env) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    finished = runs(folder, STORES[store])
    assert [run.info.status for run in finished] == ["FINISHED", "FINISHED"]
    assert len({run.data.metrics["best_val_auc"] for run in finished}) == 1
    assert len(list(folder.glob("outputs/exp_*/checkpoints/best_model.pth"))) == 2


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("npz")
def test_a_signal_leaves_the_run_killed(folder: Path, number: signal.Signals, exit_code: int) -> None:
    long = [*TINY, "--set", "training.epochs=5000", "--set", "training.schedule=none"]
    process = start(folder, "-m", "src.train", *long)
    wait_for_epoch(folder, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert f"stopped by {number.name}" in errors
    assert "Traceback" not in errors
    run = only_run(folder)
    assert run.info.status == "KILLED"
    assert number.name in run.data.tags["error"]
    assert not list(folder.rglob(".tmp-*"))


def wait_for_epoch(folder: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("outputs/*/checkpoints/latest.pth")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("npz")
def test_killed_while_the_store_is_made(folder: Path, run_python: Run) -> None:
    process = start(folder, "-m", "src.train", *TINY)
    deadline = time.monotonic() + 120
    while not (folder / ".tmp-mlflow.db").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    assert not (folder / "mlflow.db").exists()
    done = run_python("-m", "src.train", *TINY)
    assert done.returncode == 0, done.stderr
    assert only_run(folder).info.status == "FINISHED"
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.usefixtures("npz")
def test_a_diverging_loss_fails_the_run(folder: Path, run_python: Run) -> None:
    done = run_python("-m", "src.train", *TINY, "--set", "training.learning_rate=1e30", "--epochs", "4")
    assert done.returncode == 1
    assert "the training loss became" in done.stderr
    assert "lower training.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    run = only_run(folder)
    assert run.info.status == "FAILED"
    assert "the training loss became" in run.data.tags["error"]


@pytest.mark.usefixtures("npz")
def test_a_disk_that_takes_no_checkpoint_fails_the_run(folder: Path) -> None:
    """A file-size limit stands in for a full disk: the store fits below it, a checkpoint does not."""
    limit = 2_000_000
    process = subprocess.run(
        [sys.executable, "-m", "src.train", *TINY],
        cwd=folder,
        env=clean_environment(folder / "torch"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.returncode == 1
    assert "File too large" in process.stderr
    assert "latest.pth" in process.stderr
    assert "Traceback" not in process.stderr
    run = only_run(folder)
    assert run.info.status == "FAILED"
    assert "File too large" in run.data.tags["error"]
    assert not list(folder.rglob(".tmp-*"))
    assert not list(folder.rglob("*.pth"))


def mlflow_run(run_python: Run, **params: str) -> "subprocess.CompletedProcess[str]":
    pairs = [item for key, value in params.items() for item in ("-P", f"{key}={value}")]
    return run_python("-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *pairs)


def test_mlflow_run_uses_the_run_it_made(folder: Path, npz: Path, run_python: Run) -> None:
    out = f"experiment.output_dir={folder}/outputs,training.batch_size=8,model.weights=none"
    done = mlflow_run(run_python, model="resnet18", modality="P", data=str(npz), epochs="2", overrides=out)
    assert done.returncode == 0, done.stderr
    run = only_run(folder)
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "resnet18"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.tags["modality"] == "P"
    assert run.data.tags["mlflow.source.type"] == "PROJECT"


def test_ctrl_c_under_mlflow_run_is_told_by_the_run(folder: Path, npz: Path) -> None:
    out = f"experiment.output_dir={folder}/outputs,training.batch_size=8,model.weights=none"
    pairs = {"model": "shufflenet_v2_x0_5", "data": str(npz), "epochs": "5000", "overrides": out}
    params = [item for key, value in pairs.items() for item in ("-P", f"{key}={value}")]
    command = ["-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *params]
    process = start(folder, *command, group=True)
    wait_for_epoch(folder, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to everyone in the foreground
    process.communicate(timeout=60)
    run = only_run(folder)
    # We write KILLED; then MLflow's own process writes FAILED over whatever is there (3.17.2).
    assert run.info.status in {"KILLED", "FAILED"}
    assert run.data.tags["error"] == "stopped by SIGINT"


def test_no_name_of_an_image_reaches_the_store(folder: Path, run_python: Run) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    (root / "A/train/pos/CANARY-77.png").write_text("no image")
    done = mlflow_run(run_python, data=str(root), overrides=f"experiment.output_dir={folder}/outputs")
    assert done.returncode != 0
    assert "CANARY-77.png: not an image" in done.stderr
    assert only_run(folder).data.tags["error"] == "1 of the images cannot be read; stderr names them"


def test_mlflow_run_with_a_mistake_ends_failed_and_says_why(folder: Path, npz: Path, run_python: Run) -> None:
    out = f"experiment.output_dir={folder}/outputs"
    done = mlflow_run(run_python, model="resnet19", data=str(npz), overrides=out)
    assert done.returncode != 0
    run = only_run(folder)
    assert run.info.status == "FAILED"
    assert "resnet19" in run.data.tags["error"]
