"""Searches by real processes: trials are runs, whatever ends a worker or the whole."""

import csv
import time
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow.entities import Run as MlflowRun

from src.promote import main as promote
from src.search.space import Space
from src.search.study import RUN, Search
from src.search.worker import Worker
from src.sweep import main
from src.tracking.run import tracked_run
from src.tracking.store import open_store
from src.utils.config import Config
from tests.conftest import FROM_SCRATCH, Process
from tests.flows.processes import client_of, runs, start

pytestmark = pytest.mark.slow

SEARCH = ["-m", "src.sweep", "--model", "shufflenet_v2_x0_5", "--data", "small.npz", "--space", "space.yaml"]
SEARCH += ["--set", "training.batch_size=8", *FROM_SCRATCH]


def write_space(folder: Path, text: str = "training.learning_rate: {log: [1e-4, 1e-2]}") -> None:
    (folder / "space.yaml").write_text(text)


def by_role(folder: Path) -> tuple[MlflowRun, list[MlflowRun]]:
    """The run of the search, and those nested in it."""
    found = runs(folder)
    (parent,) = (run for run in found if run.data.tags.get("role") == "sweep")
    nested = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(nested) == len(found) - 1
    return parent, nested


def table(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("outputs/sweeps/*/trials.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.timeout(900)  # eight trainings, each a fresh start of Python
@pytest.mark.usefixtures("npz", "sqlite")
def test_trials_are_runs_and_one_that_fails_stops_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_space(folder, "training.learning_rate: {choices: [1e-3, 1e30]}")
    done = main([*SEARCH[2:], "--trials", "4", "--epochs", "1", "--folds", "2", "--seeds", "2", "--top", "1"])
    output = capfd.readouterr()
    assert done == 0, output.err
    parent, nested = by_role(folder)
    assert parent.info.status == "FINISHED"
    trials = [run for run in nested if "sweep.trial" in run.data.tags]
    rows = table(folder)
    assert len(trials) == len(rows) == 4
    expected = {"finished": "FINISHED", "failed": "FAILED"}
    for row in rows:
        (run,) = (run for run in trials if run.info.run_id == row["run_id"])
        assert run.info.status == expected[row["state"]]
        if row["state"] == "failed":
            assert "the training loss became" in row["reason"]
            assert run.data.tags["error"] == row["reason"]
    assert {row["state"] for row in rows} == {"finished", "failed"}
    folds = [run for run in nested if run.data.tags.get("role") == "fold"]
    assert len(folds) == 2
    assert not any("model" in run.data.tags or "test_auc" in run.data.metrics for run in folds)
    assert parent.data.metrics["folds_val_auc_mean"] == pytest.approx(
        sum(run.data.metrics["best_val_auc"] for run in folds) / 2
    )
    # The champion is one of them, and not a fold, whatever it scored.
    assert promote(["--no-verify"]) == 0
    (version,) = client_of(folder).search_model_versions("")
    candidates = [run for run in nested if run not in folds and run.info.status == "FINISHED"]
    best = max(run.data.metrics["best_val_auc"] for run in candidates)
    assert client_of(folder).get_run(str(version.run_id)).data.metrics["best_val_auc"] == best
    artifacts = {item.path for item in client_of(folder).list_artifacts(parent.info.run_id)}
    assert {"space.yaml", "trials.csv", "plots", "ranked_by_seeds.csv"} <= artifacts
    # Once more: all is done.
    assert main([*SEARCH[2:], "--trials", "4", "--epochs", "1"]) == 0
    assert len(runs(folder)) == len(nested) + 1


def workers_of(process: Process) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "--worker" in child.cmdline()]


def wait_for_epochs(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        tables = [
            path.read_text().splitlines() for path in folder.glob("outputs/logs/*/training_history.csv")
        ]
        if sum(len(rows) > 3 for rows in tables) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(list(folder.glob("outputs/*")))


def check_whole(folder: Path, count: int, epochs: int) -> None:
    """Every trial was trained to its end, once."""
    parent, nested = by_role(folder)
    assert parent.info.status == "FINISHED"
    rows = table(folder)
    assert [row["state"] for row in rows] == ["finished"] * count
    assert {run.info.run_id for run in nested} == {row["run_id"] for row in rows}
    assert len(nested) == count
    for run in nested:
        assert run.info.status == "FINISHED"
        history = client_of(folder).get_metric_history(run.info.run_id, "val_auc")
        assert [point.step for point in history] == list(range(1, epochs + 1))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz", "sqlite")
def test_a_killed_workers_trial_goes_on_in_another(folder: Path) -> None:
    write_space(folder)
    search = start(folder, *SEARCH, "--trials", "3", "--epochs", "25", "--workers", "2")
    wait_for_epochs(folder, 2)
    workers_of(search)[0].kill()
    output = search.communicate(timeout=240)
    assert search.returncode == 0, output
    assert "error" not in output[1]  # the others leave by themselves
    check_whole(folder, 3, 25)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz", "sqlite")
def test_a_training_that_is_killed_fails_its_trial_alone(folder: Path) -> None:
    write_space(folder)
    search = start(folder, *SEARCH, "--trials", "2", "--epochs", "25")
    wait_for_epochs(folder, 1)
    (worker,) = workers_of(search)
    worker.children()[0].kill()  # as the system does where memory runs out
    output = search.communicate(timeout=240)
    assert search.returncode == 0, output
    _, nested = by_role(folder)
    assert {run.info.status for run in nested} == {"FAILED", "FINISHED"}
    (failed,) = (run for run in nested if run.info.status == "FAILED")
    assert failed.data.tags["error"].startswith("killed by SIGKILL")
    assert [row["state"] for row in table(folder)] == ["failed", "finished"]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz", "sqlite")
def test_commands_that_start_together_share_one_run(folder: Path) -> None:
    write_space(folder)
    command = [*SEARCH, "--trials", "2", "--epochs", "1", "--seeds", "1", "--top", "1"]
    both = [start(folder, *command) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    parent, nested = by_role(folder)
    assert parent.info.status == "FINISHED"
    assert len(nested) == 3
    assert (
        len({row["training.learning_rate"] for row in table(folder)}) == 2
    )  # neither drew what the other did
    assert not any("failed" in error for _, error in outputs), outputs


@pytest.mark.exhaustive
@pytest.mark.usefixtures("npz", "sqlite")
def test_a_search_that_was_killed_goes_on_by_the_same_command(folder: Path) -> None:
    write_space(folder)
    command = [*SEARCH, "--trials", "2", "--epochs", "25", "--workers", "2"]
    search = start(folder, *command)
    wait_for_epochs(folder, 2)
    left = [*workers_of(search), *(c for w in workers_of(search) for c in w.children())]
    search.kill()
    search.communicate()
    assert not psutil.wait_procs(left, timeout=60)[1]  # nothing trains on unseen
    assert by_role(folder)[0].info.status == "RUNNING"  # as doctor finds it
    again = start(folder, *command)
    output = again.communicate(timeout=240)
    assert again.returncode == 0, output
    check_whole(folder, 2, 25)


@pytest.mark.usefixtures("npz", "sqlite")
def test_a_pruned_trial_is_saved_and_killed(folder: Path) -> None:
    write_space(folder)
    open_store()
    base = Config().updated(
        {
            "data.root_dir": "small.npz",
            "model.name": "shufflenet_v2_x0_5",
            "model.weights": "none",
            "training.batch_size": 8,
            "training.epochs": 5000,
            "training.schedule": "none",
        }
    )
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=2))
    with tracked_run({"role": "sweep"}) as run:
        study.set_user_attr(RUN, run.run_id)
        space = Space.from_file(folder / "space.yaml")
        Worker(Search(study, 1), space, base, "s", folder, run.run_id).run()
    (trial,) = study.get_trials()
    assert trial.state == optuna.trial.TrialState.PRUNED
    _, (pruned,) = by_role(folder)
    assert pruned.info.status == "KILLED"
    assert pruned.data.tags["sweep.pruned"].startswith(f"after epoch {trial.last_step}")
    assert (folder / "outputs/s_000/checkpoints/latest.pth").exists()


def test_what_cannot_be_searched_starts_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_space(folder, "training.momentum: {range: [0.5, 1.5]}")
    assert main(["--space", "space.yaml"]) == 2
    assert "training.momentum" in capfd.readouterr().err
    assert main(["--space", "space.yaml", "--timeout", "2 hours"]) == 2
    assert "--timeout" in capfd.readouterr().err
    assert not (folder / "mlflow.db").exists()
    assert not (folder / "outputs").exists()
