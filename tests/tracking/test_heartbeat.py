"""The heartbeat of a run, in this process."""

import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest

from src.errors import ConfigError
from src.tracking.heartbeat import Beat, Heartbeat, beat
from src.tracking.journal import TAGS, Journal
from src.tracking.names import HEARTBEAT
from src.tracking.outbox import Outbox, UndeliveredError
from src.tracking.run import tracked_run
from tests.servers import Server
from tests.tracking.test_outbox import new_run, until


def last_beat(run_id: str) -> Beat:
    found = Beat.from_json(mlflow.MlflowClient().get_run(run_id).data.tags[HEARTBEAT])
    assert found is not None
    return found


@pytest.mark.usefixtures("server")
def test_it_beats_from_the_start_to_the_end(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPROJECT_HEARTBEAT_SECONDS", "0.2")
    with tracked_run({"a": "b"}) as run:
        first = last_beat(run.run_id)
        assert first.lives()
        run.keep_in(results)
        until(lambda: last_beat(run.run_id).time > first.time)
    ended = last_beat(run.run_id)
    time.sleep(1.1)
    assert last_beat(run.run_id) == ended
    assert not (results / "undelivered").exists()


def test_it_waits_once_where_the_server_is_gone(server: Server, results: Path) -> None:
    outbox = Outbox(results, new_run())
    server.kill()
    for _ in range(20):
        outbox.put(TAGS, beat())
    outbox.put(TAGS, {"other": "stays"})
    # One may be on the way, one waits.
    waiting = Journal.read(results, mend=False).pending.values()
    assert len(waiting) <= 3
    server.start()
    outbox.put_status("FINISHED")
    outbox.close("FINISHED")
    run = mlflow.MlflowClient().get_run(Journal.read(results).run_id) if results.exists() else None
    assert run is None or run.data.tags["other"] == "stays"


@pytest.mark.usefixtures("server")
def test_one_that_is_refused_is_told_once_and_kept_once(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = new_run()
    outbox = Outbox(results, run_id)
    mlflow.MlflowClient().delete_run(run_id)
    for _ in range(5):
        outbox.put(TAGS, beat())
        until(lambda: not outbox._waiting)
    assert len(Journal.read(results, mend=False).pending) == 1
    with pytest.raises(UndeliveredError):
        outbox.close("FAILED")
    assert capsys.readouterr().err.count("refuses what the run records") == 1


def test_a_failing_one_is_told_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def fail(tags: Mapping[str, str]) -> None:
        calls.append(tags)
        raise OSError(28, "No space left on device")

    heartbeat = Heartbeat(fail, 0.01)
    until(lambda: len(calls) > 5)
    heartbeat.stop()
    told = capsys.readouterr().err
    assert told.count("\n") == told.count("heartbeat is not recorded: [Errno 28] No space left") == 1


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_wrong_number_of_seconds_is_told_before_there_is_a_run(
    text: str, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("MLPROJECT_HEARTBEAT_SECONDS", text)
    with pytest.raises(ConfigError, match="MLPROJECT_HEARTBEAT_SECONDS"), tracked_run({}):
        pass
    assert server.process is not None
    assert not mlflow.MlflowClient().search_runs(["0"])
