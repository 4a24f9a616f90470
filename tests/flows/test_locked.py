"""A SQLite store that another process locks in the middle of a training."""

import csv
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest

from src import store, train
from src.tracking import sqlite_locks
from src.tracking.store import open_store
from src.training.recorder import COLUMNS
from tests.flows.processes import TINY, only_run, start, wait_for_epoch
from tests.images import write_npz
from tests.stores import place_store

pytestmark = pytest.mark.slow

NAMED = [*TINY, "--set", "experiment.name=mine", "--epochs", "4"]
TABLE = Path("outputs/logs/mine/training_history.csv")


@contextmanager
def lock(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def lock_after_an_epoch(seconds: float) -> None:
    while not TABLE.exists() or len(TABLE.read_text().splitlines()) < 2:
        time.sleep(0.01)
    with lock(Path("mlflow.db")):
        time.sleep(seconds)


@pytest.mark.parametrize("seconds", [5, pytest.param(90, marks=pytest.mark.exhaustive)])
def test_a_lock_is_waited_for(
    folder: Path, npz: Path, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    place_store(folder / "mlflow.db")
    thread = threading.Thread(target=lock_after_an_epoch, args=(seconds,), daemon=True)
    thread.start()
    started = time.monotonic()
    assert train.main([*NAMED, "--data", str(npz)]) == 0
    assert time.monotonic() - started > seconds
    assert capsys.readouterr().err.count("mlflow.db is locked by another process") == 1
    run, client = only_run(folder), mlflow.MlflowClient()
    assert run.info.status == "FINISHED"
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for name in COLUMNS[1:]:
        points = client.get_metric_history(run.info.run_id, name)
        assert [(p.step, p.value) for p in points] == [(int(r["epoch"]), float(r[name])) for r in rows]


def test_a_signal_ends_the_wait(folder: Path) -> None:
    write_npz(folder / "small.npz")
    place_store(folder / "mlflow.db")
    process = start(folder, "-m", "src.train", *NAMED, "--epochs", "5000")
    wait_for_epoch(folder, process)
    with lock(folder / "mlflow.db"):
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - sent < 20
    assert process.returncode == 143, errors
    assert "could not be marked KILLED: (sqlite3.OperationalError) database is locked" in errors
    assert "Traceback" not in errors
    assert only_run(folder).info.status == "RUNNING"
    store.main(["doctor", "--apply"])
    assert only_run(folder).info.status == "KILLED"


def test_patience_has_an_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place_store(folder / "mlflow.db")
    monkeypatch.setattr(sqlite_locks, "PATIENCE", 4.0)
    with lock(path):
        started = time.monotonic()
        assert store.main(["doctor"]) == 2
        assert 3 < time.monotonic() - started < 15
    errors = capsys.readouterr().err
    assert f"{path} is locked by another process" in errors
    assert "the tracking store cannot be opened: (sqlite3.OperationalError) database is locked" in errors
    open_store()
    assert mlflow.MlflowClient().get_experiment("0").name == "Default"
