"""``MLFLOW_RUN_ID`` left over in a shell never changes the run that it names."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import pytest

from src import cleanup, evaluate, export, extract, predict, promote, report, store, sweep, train
from src.tracking.project_run import project_run
from tests.conftest import ROOT
from tests.inference.conftest import NAMED, TRAIN, champion

pytestmark = pytest.mark.slow

Main = Callable[[Sequence[str]], int]
RECORDING: dict[str, tuple[Main, list[str]]] = {
    "train": (train.main, TRAIN),
    "train with a mistake": (train.main, [*TRAIN, "--config", "missing.yaml"]),
    "sweep": (
        sweep.main,
        ["--model", "shufflenet_v2_x0_5", "--modality", "A", "--data", "d", "--trials", "1"],
    ),
    "evaluate": (evaluate.main, NAMED),
}
OTHERS: dict[str, tuple[Main, list[str]]] = {
    "train --dry-run": (train.main, [*TRAIN, "--dry-run"]),
    "promote --dry-run": (promote.main, [*NAMED, "--dry-run"]),
    "promote --check": (promote.main, ["--check"]),
    "promote with a mistake": (promote.main, [*NAMED, "--min-auc", "much"]),
    "predict": (predict.main, [*NAMED, "--input", "d/A/test", "--output", "p.csv"]),
    "extract": (extract.main, [*NAMED, "--input", "d/A/test", "--output", "f.npz"]),
    "export": (export.main, [*NAMED, "--output", "m.onnx"]),
    "report": (report.main, ["--output", "r.html"]),
    "cleanup": (cleanup.main, []),
    "doctor": (store.main, ["doctor"]),
}
STATES = ("FINISHED", "FAILED", "deleted", "unknown", "made by hand", "of another project")


def contents(folder: Path) -> dict[str, str]:
    """The store, byte by byte."""
    paths = [folder / "mlflow.db", *(folder / "mlruns").rglob("*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def rows(folder: Path) -> list[str]:
    """The store's database; doctor sets a tag and removes it, to see whether it can write."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return list(database.iterdump())


@pytest.fixture(scope="module")
def run_ids(workshop: Path) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        client = mlflow.MlflowClient(f"sqlite:///{workshop}/mlflow.db")
        finished = client.search_runs(["0"])[0].info.run_id
        made = {name: client.create_run("0").info.run_id for name in ("FAILED", "deleted", "made by hand")}
        client.set_terminated(made["FAILED"], "FAILED")
        client.delete_run(made["deleted"])
        other = client.create_run("0", tags=project_tags(workshop)).info.run_id
    return {**made, "FINISHED": finished, "unknown": "0" * 32, "of another project": other}


def project_tags(source: Path | str) -> dict[str, str]:
    """As `mlflow run` sets them."""
    return {
        "mlflow.source.type": "PROJECT",
        "mlflow.project.entryPoint": "main",
        "mlflow.source.name": str(source),
    }


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("command", RECORDING)
def test_commands_that_record_refuse_it(
    command: str,
    state: str,
    trained: Path,
    run_ids: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", run_ids[state])
    main, arguments = RECORDING[command]
    before = contents(trained)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"error: MLFLOW_RUN_ID names run {run_ids[state]}, " in error
    assert "unset MLFLOW_RUN_ID" in error
    assert contents(trained) == before


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=[pytest.mark.exhaustive] if name == "export" else []) for name in OTHERS],
)
def test_commands_that_record_nothing_ignore_it(
    command: str, trained: Path, run_ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main, arguments = OTHERS[command]
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    status = main(arguments)
    state = rows if command == "doctor" else contents
    before = state(trained)
    is_slow = command == "export"
    for run_id in ("", run_ids["FINISHED"]) if is_slow else ("", *run_ids.values()):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        assert main(arguments) == status
        assert state(trained) == before


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("source", [ROOT, f"file://{ROOT}", "https://example.org/p.git#sub", "/in/an/image"])
def test_the_run_of_mlflow_run_is_taken_once(
    source: Path | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", tags=project_tags(source)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert project_run() == run_id
    client.log_metric(run_id, "val_auc", 0.5, step=1)
    assert project_run() is None
    assert train.main(TRAIN) == 2
    assert "which holds results already" in capsys.readouterr().err


def test_a_store_that_is_not_there_is_not_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert train.main(TRAIN) == 2
    assert "MLFLOW_RUN_ID names run 000" in capsys.readouterr().err
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("trained")
def test_a_training_records_in_the_run_of_mlflow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", tags=project_tags(ROOT)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert train.main([*TRAIN, "--set", "training.seed=7", "--set", "experiment.name=taken"]) == 0
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["training.seed"]) == ("FINISHED", "7")
    assert champion().run_id != run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert train.main(TRAIN) == 2
