"""A ready store in every test's folder, and a data set beside it."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from src.promotion.history import Event
from tests.images import write_npz
from tests.servers import Server


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``mlflow server`` on loopback, with artifacts of its own."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server.uri
    finally:
        server.kill()


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


def history() -> list[Event]:
    path = Path("config/best_hparams/history.jsonl")
    found = [Event.from_json(line) for line in path.read_text().splitlines()] if path.exists() else []
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
