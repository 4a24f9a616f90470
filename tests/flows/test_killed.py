"""A training that is killed by SIGKILL beside one that lives, and what ``src.store doctor`` makes of both."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from src.store import main
from src.tracking.heartbeat import Heartbeat
from src.tracking.names import HEARTBEAT
from src.tracking.store import open_store
from tests.conftest import Process
from tests.flows.processes import TINY, only_run, start, wait_for_epoch
from tests.images import write_npz
from tests.servers import Server

pytestmark = pytest.mark.slow

LONG = [*TINY, "--set", "training.epochs=5000", "--set", "training.schedule=none"]


@pytest.fixture
def uri(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The store; its schema is there already."""
    server = None
    if request.param == "server":
        server = Server(tmp_path_factory.mktemp("server"))
        server.start()
    uris = {"sqlite": f"sqlite:///{folder}/mlflow.db", "file": str(folder / "mlruns")}
    yield server.uri if server else uris[request.param]
    if server:
        server.kill()


def last_beat(run_id: str) -> Heartbeat:
    beat = Heartbeat.from_json(mlflow.MlflowClient().get_run(run_id).data.tags[HEARTBEAT])
    assert beat is not None
    return beat


def status(run_id: str) -> str:
    return str(mlflow.MlflowClient().get_run(run_id).info.status)


def start_both(folder: Path, uri: str) -> dict[str, Process]:
    """Two trainings, past their first epoch, by their runs' ids."""
    env: dict[str, Any] = {"MLFLOW_TRACKING_URI": uri, "MLPROJECT_HEARTBEAT_SECONDS": "0.5"}
    both = {p.pid: p for p in (start(folder, "-m", "src.train", *LONG, **env) for _ in range(2))}
    deadline = time.monotonic() + 120
    while len(list(folder.glob("outputs/*/checkpoints/latest.pth"))) < 2:
        assert all(process.poll() is None for process in both.values())
        assert time.monotonic() < deadline
        time.sleep(0.1)
    open_store()
    ids = [run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])]
    return {run_id: both[last_beat(run_id).pid] for run_id in ids}


@pytest.mark.parametrize(
    "uri",
    ["sqlite", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("file", "server"))],
    indirect=True,
)
def test_the_killed_one_is_marked_and_the_living_one_is_not(
    folder: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(folder / "small.npz")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    both = start_both(folder, uri)
    (killed, process), (living, other) = both.items()
    process.kill()
    process.communicate()
    assert main(["doctor"]) == 1
    assert "1 of 2 RUNNING runs dead" in capsys.readouterr().err
    assert (status(killed), status(living)) == ("RUNNING", "RUNNING")
    main(["doctor", "--apply"])
    assert f"run {killed}: marked KILLED" in capsys.readouterr().out
    assert (status(killed), status(living)) == ("KILLED", "RUNNING")
    error = mlflow.MlflowClient().get_run(killed).data.tags["error"]
    assert f"process {process.pid} on" in error
    (left,) = folder.glob(f"outputs/*{killed[:8]}")
    main(["sync", str(left)])  # what a server had not got yet
    assert main(["doctor"]) == 0, capsys.readouterr()
    before = last_beat(living)
    time.sleep(2)
    assert last_beat(living).time > before.time
    assert other.poll() is None


def test_a_cache_cut_off_in_mid_training_ends_the_run_with_a_message(folder: Path) -> None:
    write_npz(folder / "small.npz")
    process = start(folder, "-m", "src.train", *LONG)
    wait_for_epoch(folder, process)
    (pack,) = folder.glob("outputs/cache/packs/*.npy")
    os.truncate(pack, 2000)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert f"{pack.name}: the cache of decoded images was cut off while it was in use" in error
    assert "Traceback" not in error
    assert only_run(folder).info.status == "FAILED"
