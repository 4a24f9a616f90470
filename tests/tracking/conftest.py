"""A server of its own for every file of tests; each may be killed."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.servers import Server


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(running_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, up and emptied; MLFLOW_TRACKING_URI names it."""
    if running_server.process is None:
        running_server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running_server.uri)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = mlflow.MlflowClient()
    for run in client.search_runs(["0"]):
        client.delete_run(run.info.run_id)
    return running_server


@pytest.fixture
def results(folder: Path) -> Path:
    """The folder of a run."""
    return folder / "outputs" / "mine"
