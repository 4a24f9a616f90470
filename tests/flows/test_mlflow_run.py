"""Training by ``mlflow run`` that goes wrong; `test_promote` has one that goes well."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Run
from tests.flows.processes import TINY, client_of, only_run, runs, start, wait_for_epoch

pytestmark = pytest.mark.slow


def mlflow_run(
    run_python: Run, environment: dict[str, str] | None = None, /, **params: str
) -> "subprocess.CompletedProcess[str]":
    pairs = [item for key, value in params.items() for item in ("-P", f"{key}={value}")]
    return run_python(
        "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *pairs, **(environment or {})
    )


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


def files_of_the_checkout() -> set[Path]:
    """All but hidden folders and bytecode, which other tests write at the same time."""
    top = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    below = (path for folder in filter(Path.is_dir, top) for path in folder.rglob("*"))
    return {*top, *(path for path in below if "__pycache__" not in path.parts)}


def test_files_land_where_the_user_is(folder: Path, npz: Path, run_python: Run) -> None:
    before = files_of_the_checkout()
    options = {
        "model": "shufflenet_v2_x0_5",
        "data": npz.name,
        "epochs": "1",
        "modality": "A",
    }
    done = mlflow_run(
        run_python, **options, promote="true", config="config/medmnist.yaml", overrides="model.weights=none"
    )
    assert done.returncode == 0, done.stderr
    assert files_of_the_checkout() == before
    (latest,) = folder.glob("outputs/*/checkpoints/latest.pth")
    again = run_python("-m", "src.train", "--config", *map(str, folder.glob("config/best_hparams/*.yaml")))
    assert again.returncode == 0, again.stderr
    assert len(list(folder.glob("outputs/*/checkpoints/latest.pth"))) == 2
    assert latest.exists()


@pytest.mark.exhaustive
def test_mlflow_run_resumes(folder: Path, npz: Path, run_python: Run) -> None:
    options = [*TINY, "--epochs", "3", "--set", "training.checkpoint_every_minutes=1e-9"]
    options += ["--data", str(npz), "--set", f"experiment.output_dir={folder}/outputs"]
    process = start(folder, "-m", "src.train", *options)
    wait_for_epoch(folder, process)
    process.terminate()
    process.communicate(timeout=60)
    run = only_run(folder)
    assert run.info.status == "KILLED"
    done = mlflow_run(run_python, resume=run.info.run_id)
    assert done.returncode == 0, done.stderr
    project, resumed = sorted(runs(folder), key=lambda run: "role" not in run.data.tags)
    assert resumed.info.run_id == run.info.run_id
    assert resumed.info.status == project.info.status == "FINISHED"
    assert project.data.tags["role"] == "resume"
    assert not project.data.metrics
    assert len(client_of(folder).get_metric_history(run.info.run_id, "val_auc")) == 3


def test_mlflow_run_with_a_mistake_ends_failed_and_says_why(folder: Path, npz: Path, run_python: Run) -> None:
    out = f"experiment.output_dir={folder}/outputs"
    done = mlflow_run(run_python, model="resnet19", data=str(npz), overrides=out)
    assert done.returncode != 0
    run = only_run(folder)
    assert run.info.status == "FAILED"
    assert "resnet19" in run.data.tags["error"]


@pytest.mark.exhaustive
def test_mlflow_run_within_another_run_leaves_that_one_alone(
    folder: Path, npz: Path, run_python: Run
) -> None:
    out = f"experiment.output_dir={folder}/outputs,training.batch_size=8,model.weights=none"
    options = {"model": "shufflenet_v2_x0_5", "data": str(npz), "epochs": "1", "overrides": out}
    assert mlflow_run(run_python, **options).returncode == 0
    outer = only_run(folder)
    done = mlflow_run(run_python, {"MLFLOW_RUN_ID": outer.info.run_id}, **options)
    assert done.returncode == 0, done.stderr
    assert {run.info.status for run in runs(folder)} == {"FINISHED"}
    assert len(runs(folder)) == 2
    assert client_of(folder).get_run(outer.info.run_id).to_dictionary() == outer.to_dictionary()
