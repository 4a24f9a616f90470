"""Delivery to a real server, in this process."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.models import Model

from src.store import main
from src.tracking.delivery import Delivery
from src.tracking.heartbeat import Heartbeat, heartbeat_tag
from src.tracking.journal import FOLDER, METRICS, TAGS, Item, Journal
from src.tracking.logged_model import deliver_model
from src.tracking.names import DELIVERED_EPOCH, HEARTBEAT
from src.tracking.outbox import Outbox, UndeliveredError
from src.tracking.run import tracked_run
from src.tracking.store import http_retries
from src.utils.io import atomic_write_text
from tests.servers import Server

pytestmark = pytest.mark.slow


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def points(run_id: str, key: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient().get_metric_history(run_id, key)
    return [(point.step, point.value) for point in found]


def metrics(step: int, **values: float) -> dict[str, Any]:
    return {"step": step, "timestamp": int(time.time() * 1000), "values": values}


def new_run() -> str:
    return str(mlflow.MlflowClient().create_run("0").info.run_id)


def journal(results: Path) -> list[str]:
    path = results / FOLDER / "journal.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.usefixtures("server")
def test_sent_twice_there_once(folder: Path) -> None:
    run_id, values = new_run(), {"a": 0.1, "b": math.nan, "c": math.inf}
    Delivery(run_id, folder).send(Item(1, METRICS, metrics(1, **values)))
    # After a crash between the server's answer and the journal's line, and a clock that was set.
    again = Delivery(run_id, folder)
    for number in (1, 2):
        doubtful = metrics(1, **values, d=4.0) | {"timestamp": 5}
        again.send(Item(number, METRICS, doubtful, is_doubtful=True))
    again.send(Item(3, METRICS, metrics(2, a=0.2), is_doubtful=True))
    assert points(run_id, "a") == [(1, 0.1), (2, 0.2)]
    assert len(points(run_id, "b")) == len(points(run_id, "c")) == 1
    assert points(run_id, "d") == [(1, 4.0)]


@pytest.mark.usefixtures("server")
def test_a_model_that_was_begun_is_finished_not_made_again(folder: Path) -> None:
    run_id, client = new_run(), mlflow.MlflowClient()
    Model().save(str(folder / "MLmodel"))
    begun = client.create_logged_model("0", "model", run_id, tags={DELIVERED_EPOCH: "3"})
    for _ in range(2):
        deliver_model(client, run_id, folder, 3)
    deliver_model(client, run_id, folder, 4)  # of a run that went on
    outputs = client.get_run(run_id).outputs
    assert outputs is not None
    assert {3: begun.model_id}.items() <= {o.step: o.model_id for o in outputs.model_outputs}.items()
    assert sorted(output.step for output in outputs.model_outputs) == [3, 4]
    assert client.get_logged_model(begun.model_id).status == "READY"
    assert Model.load(f"models:/{begun.model_id}").model_id == begun.model_id


def test_gone_and_back(server: Server, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id, file = new_run(), results / "latest.pth"
    with http_retries(0):
        outbox = Outbox(results, run_id)
        outbox.put(METRICS, metrics(1, a=0.1))
        until(lambda: points(run_id, "a") == [(1, 0.1)])
        server.kill()
        for step in range(2, 30):
            outbox.put(METRICS, metrics(step, a=step / 10))
            atomic_write_text(file, f"state {step}")
            outbox.put_file(file, "checkpoints")
        # One version may be on the way, one waits.
        assert len(list((results / FOLDER).rglob("latest.pth"))) <= 2
        told: list[str] = []

        def tells(text: str) -> bool:
            told.append(capsys.readouterr().err)
            return text in "".join(told)

        until(lambda: tells("has not responded"))
        server.start()
        outbox.put_status("FINISHED")
        outbox.close("FINISHED")
    text = "".join(told) + capsys.readouterr().err
    assert text.count("has not responded") == text.count("answers again") == 1
    assert "Traceback" not in text
    assert points(run_id, "a") == [(step, step / 10) for step in range(1, 30)]
    client = mlflow.MlflowClient()
    assert client.get_run(run_id).info.status == "FINISHED"
    assert Path(client.download_artifacts(run_id, "checkpoints/latest.pth")).read_text() == "state 29"
    assert [path.name for path in results.iterdir()] == ["latest.pth"]


@pytest.mark.usefixtures("server")
def test_a_store_that_refuses_is_told_once_and_holds_nothing_up(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, client = new_run(), mlflow.MlflowClient()
    outbox = Outbox(results, run_id)
    client.delete_run(run_id)
    for step in (1, 2, 3):
        outbox.put(METRICS, metrics(step, a=step / 10))
    outbox.put_status("FINISHED")
    started = time.monotonic()
    with pytest.raises(UndeliveredError, match=r"4 items .* refused: metrics: .*'active' state"):
        outbox.close("FINISHED")
    assert time.monotonic() - started < 10
    assert capsys.readouterr().err.count("refuses what the run records") == 1
    assert main(["sync", str(results)]) == 1
    assert f"mlflow runs restore --run-id {run_id}" in capsys.readouterr().err
    client.restore_run(run_id)
    assert main(["sync", str(results)]) == 0
    assert "4 items delivered" in capsys.readouterr().out
    assert points(run_id, "a") == [(step, step / 10) for step in (1, 2, 3)]
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("server")
def test_a_second_process_goes_on_where_the_first_was_killed(results: Path) -> None:
    run_id = new_run()
    left = Journal.begin(results, run_id, "http://127.0.0.1:1")
    for step in (1, 2):
        left.add(left.reserve(), METRICS, metrics(step, a=step / 10))
    Delivery(run_id, results).send(left.pending[1])  # arrived, and was not written down
    outbox = Outbox(results, run_id)
    outbox.put(METRICS, metrics(3, a=0.3))
    outbox.put_status("FINISHED")
    outbox.close("FINISHED")
    assert points(run_id, "a") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_mlflow_itself_never_ends_the_run(
    server: Server, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLPROJECT_SERVER_PATIENCE", "1")
    ids = []

    def train() -> None:
        with tracked_run({"a": "b"}) as run:
            ids.append(run.run_id)
            run.keep_in(results)
            server.kill()
            run.log_metrics({"a": 1.0}, step=1)

    with pytest.raises(UndeliveredError, match=r"2 items .* src\.store sync"):
        train()
    assert mlflow.active_run() is None  # else it would be FINISHED when the process ends
    server.start()
    assert mlflow.MlflowClient().get_run(ids[0]).info.status == "RUNNING"
    assert main(["sync", str(results)]) == 0
    assert mlflow.MlflowClient().get_run(ids[0]).info.status == "FINISHED"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.usefixtures("server")
def test_sync_refuses(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sync", "outputs/none"]) == 2
    assert "outputs/none: not the folder of a run" in capsys.readouterr().err
    assert main([]) == 2
    (results / "checkpoints").mkdir(parents=True)
    assert main(["sync", str(results)]) == 0
    assert "nothing is missing" in capsys.readouterr().out
    outbox = Outbox(results, new_run())
    assert main(["sync", str(results)]) == 1
    assert "wait for its end" in capsys.readouterr().err
    outbox.close("FINISHED")
    Journal.begin(results, "0" * 32, "http://127.0.0.1:1")
    assert main(["sync", str(results)]) == 1
    assert f"has no run {'0' * 32}" in (told := capsys.readouterr().err)
    assert "recorded at http://127.0.0.1:1: set MLFLOW_TRACKING_URI" in told
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert main(["sync", str(results)]) == 1
    assert "the server does not answer: Connection refused" in capsys.readouterr().err
    assert json.loads(journal(results)[0])["run_id"] == "0" * 32


def last_beat(run_id: str) -> Heartbeat:
    found = Heartbeat.from_json(mlflow.MlflowClient().get_run(run_id).data.tags[HEARTBEAT])
    assert found is not None
    return found


@pytest.mark.usefixtures("server")
def test_a_heartbeat_from_the_start_to_the_end(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPROJECT_HEARTBEAT_SECONDS", "0.2")
    with tracked_run({"a": "b"}) as run:
        first = last_beat(run.run_id)
        assert first.is_alive()
        run.keep_in(results)
        until(lambda: last_beat(run.run_id).time > first.time)
    ended = last_beat(run.run_id)
    time.sleep(1.1)
    assert last_beat(run.run_id) == ended
    assert not (results / "undelivered").exists()


def test_of_heartbeats_one_waits_where_the_server_is_gone(server: Server, results: Path) -> None:
    run_id = new_run()
    with http_retries(0):
        outbox = Outbox(results, run_id)
        server.kill()
        for _ in range(20):
            outbox.put(TAGS, heartbeat_tag())
        outbox.put(TAGS, {"other": "stays"})
        # One may be on the way, one waits.
        assert len(Journal.read(results, repair=False).pending) <= 3
        server.start()
        outbox.put_status("FINISHED")
        outbox.close("FINISHED")
    assert last_beat(run_id).is_alive()
    assert mlflow.MlflowClient().get_run(run_id).data.tags["other"] == "stays"


@pytest.mark.usefixtures("server")
def test_a_heartbeat_that_is_refused_is_told_once_and_kept_once(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = new_run()
    outbox = Outbox(results, run_id)
    mlflow.MlflowClient().delete_run(run_id)
    for _ in range(5):
        outbox.put(TAGS, heartbeat_tag())
        until(lambda: not outbox._waiting)
    assert len(Journal.read(results, repair=False).pending) == 1
    with pytest.raises(UndeliveredError):
        outbox.close("FAILED")
    assert capsys.readouterr().err.count("refuses what the run records") == 1
