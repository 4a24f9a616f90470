"""A ready store in every test's folder, and a data set beside it."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from src.promotion.history import Entry
from src.tracking.store import open_store
from tests.conftest import clean_environment, write_npz


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's SQLite file as it makes it; the migrations take seconds, a copy nothing."""
    folder = tmp_path_factory.mktemp("store")
    before = Path.cwd()
    os.chdir(folder)
    try:
        open_store()
    finally:
        os.chdir(before)
    return folder / "mlflow.db"


def place_store(empty_store: Path, path: Path, artifacts: str) -> Path:
    """Puts a new store at ``path``, whose default experiment keeps its artifacts at ``artifacts``."""
    shutil.copy(empty_store, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", (artifacts,))
    return path


@pytest.fixture
def sqlite(folder: Path, empty_store: Path) -> Path:
    """MLflow's default store in the test's folder."""
    return place_store(empty_store, folder / "mlflow.db", f"{folder}/mlruns/0")


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    """``mlflow server`` on loopback, with artifacts of its own."""
    folder = tmp_path_factory.mktemp("server")
    store = place_store(empty_store, folder / "mlflow.db", "mlflow-artifacts:/0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store}", "--artifacts-destination", f"{folder}/served"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command,
            # Its job runners, seven processes, serve nothing that is tested here.
            env=clean_environment(folder / "torch") | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{uri}/health", timeout=5)
                break
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture
def server(running_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server, emptied."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running_server)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = mlflow.MlflowClient()
    for run in client.search_runs(["0"]):
        client.delete_run(run.info.run_id)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    return running_server


@pytest.fixture(params=["sqlite", "file", "server"])
def any_store(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of store in turn; MLFLOW_TRACKING_URI names it, as a user would."""
    kind = str(request.param)
    if kind == "file":
        # A user writes ./mlruns; MLflow keeps one open store per name, and tests share a process.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(folder / "mlruns"))
    else:
        request.getfixturevalue(kind)
    return kind


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of all runs."""
    return write_npz(tmp_path_factory.mktemp("data") / "small.npz", val=60)


@pytest.fixture(scope="session")
def other_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other data."""
    return write_npz(tmp_path_factory.mktemp("other") / "other.npz", val=40)


def history() -> list[Entry]:
    path = Path("config/best_hparams/history.jsonl")
    found = [Entry.from_json(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert None not in found
    return [entry for entry in found if entry is not None]


def actions() -> list[tuple[str, int | None]]:
    return [(entry.action, entry.version) for entry in history()]


def aliases(name: str = "resnet18_A") -> dict[str, int]:
    found = mlflow.MlflowClient().get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


def champion_run(name: str = "resnet18_A") -> str:
    return str(mlflow.MlflowClient().get_model_version_by_alias(name, "champion").run_id)


def version_count(name: str = "resnet18_A") -> int:
    return len(mlflow.MlflowClient().search_model_versions(f"name='{name}'"))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file but SQLite's own and locks."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(("mlflow.db-", "."))]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}
