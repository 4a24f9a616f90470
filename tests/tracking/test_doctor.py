"""``python -m src.store doctor``: on real stores, with processes that are really gone."""

import fcntl
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pytest

from src.store import main
from src.tracking.heartbeat import Heartbeat
from src.tracking.journal import METRICS, STATUS, Journal, journal_lock
from src.tracking.liveness import check_running_runs, mark_killed
from src.tracking.names import HEARTBEAT
from src.tracking.run import tracked_run
from src.tracking.store import open_store
from src.utils.io import TEMP_PREFIX

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite", "file", "server"])
def any_store(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(folder / "mlruns"))
        open_store()
    else:
        request.getfixturevalue(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def dead() -> Heartbeat:
    """The heartbeat of a process of this machine that is no more."""
    code = "from src.tracking.heartbeat import heartbeat_tag; print(*heartbeat_tag().values())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = Heartbeat.from_json(done.stdout)
    assert found is not None
    assert found.is_from_here
    return found


def long_ago(beat: Heartbeat, minutes: float) -> Heartbeat:
    return replace(beat, time=datetime.now(UTC) - timedelta(minutes=minutes))


def start_run(beat: Heartbeat | str | None) -> str:
    tags = {} if beat is None else {HEARTBEAT: beat if isinstance(beat, str) else beat.to_json()}
    return str(mlflow.MlflowClient().create_run("0", tags=tags).info.run_id)


def statuses(*run_ids: str) -> list[str]:
    client = mlflow.MlflowClient()
    return [client.get_run(run_id).info.status for run_id in run_ids]


def test_only_runs_whose_process_is_gone_are_killed(
    any_store: str, dead: Heartbeat, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Heartbeat.now()
    elsewhere = replace(here, host="elsewhere")
    alive = [
        start_run(here),
        start_run(long_ago(here, 60)),  # busy, and its store was away
        start_run(long_ago(elsewhere, 14)),
        start_run(replace(dead, boot="before")),
        start_run(None),
        start_run(dead.to_json()[:-9]),
    ]
    reused = replace(here, started=here.started - 100)
    gone = [start_run(dead), start_run(reused), start_run(long_ago(elsewhere, 16))]
    done = start_run(dead)
    mlflow.MlflowClient().set_terminated(done, "FINISHED")

    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "3 of 9 RUNNING runs dead: python -m src.store doctor --apply" in captured.err
    assert "writable   yes" in captured.out
    assert captured.out.count("no heartbeat") == captured.out.count("live or unknown") == 2
    assert set(statuses(*alive, *gone)) == {"RUNNING"}

    assert main(["doctor", "--apply"]) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count("marked KILLED") == 3
    assert statuses(*alive, *gone, done) == ["RUNNING"] * 6 + ["KILLED"] * 3 + ["FINISHED"]
    killed, _, silent = (mlflow.MlflowClient().get_run(run_id) for run_id in gone)
    assert f"process {dead.pid} on {dead.host} is gone; last heartbeat 20" in killed.data.tags["error"]
    assert "on elsewhere is silent" in silent.data.tags["error"]
    assert "16 min ago" in silent.data.tags["error"]
    assert killed.info.end_time >= killed.info.start_time
    assert main(["doctor"]) == 0
    assert not [tag for tag in mlflow.MlflowClient().get_experiment("0").tags if "doctor" in tag]
    assert any_store != "server" or "http://127.0.0.1" in captured.out


@pytest.mark.usefixtures("sqlite")
def test_a_journal_tells_more_than_a_heartbeat(
    results: Path, dead: Heartbeat, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = start_run(long_ago(replace(dead, host="elsewhere"), 60))
    journal = Journal.begin(results, run_id, "http://127.0.0.1:1")
    with journal_lock(results):
        assert main(["doctor", "--apply"]) == 0
    assert "its process delivers from" in capsys.readouterr().out
    item = journal.add(journal.reserve(), STATUS, {"status": "FINISHED", "end_time": 5})
    assert main(["doctor", "--apply"]) == 1  # neither dead, nor RUNNING any more
    assert "python -m src.store sync outputs/mine" in capsys.readouterr().err
    assert statuses(run_id) == ["RUNNING"]
    journal.done(item)
    journal.add(journal.reserve(), METRICS, {"step": 1, "timestamp": 5, "values": {"a": 1.0}})
    with (results / "undelivered/journal.jsonl").open("ab") as file:
        file.write(b'{"cut')
    before = (results / "undelivered/journal.jsonl").read_bytes()
    assert main(["doctor", "--apply"]) == 1
    assert "outputs/mine: 1 item of run" in capsys.readouterr().out
    assert (results / "undelivered/journal.jsonl").read_bytes() == before
    assert statuses(run_id) == ["KILLED"]
    assert main(["sync", str(results)]) == 0
    assert main(["doctor"]) == 0
    assert statuses(run_id) == ["KILLED"]


def place_temp(path: Path, age: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.write_bytes(bytes(1000))
    else:
        path.mkdir()
        (path / "part.png").write_bytes(bytes(1000))
    then = datetime.now(UTC).timestamp() - age
    os.utime(path, (then, then))
    return path


@pytest.mark.usefixtures("sqlite")
def test_leftovers_are_deleted_and_what_is_in_use_is_not(
    folder: Path, dead: Heartbeat, capsys: pytest.CaptureFixture[str]
) -> None:
    day, runs = 90_000, folder / "outputs/exp_1/checkpoints"
    gone = [
        place_temp(runs / f"{TEMP_PREFIX}{dead.pid}-x.pth", 120),
        place_temp(runs / f"{TEMP_PREFIX}abc.pth", day),
        place_temp(folder / f"outputs/data/{TEMP_PREFIX}demo-1", day),
        place_temp(folder / f"config/best_hparams/{TEMP_PREFIX}a.yaml", day),
        place_temp(folder / f"{TEMP_PREFIX}mlflow.db", day),
    ]
    kept = [
        place_temp(runs / f"{TEMP_PREFIX}{os.getpid()}-x.pth", 120),
        place_temp(runs / f"{TEMP_PREFIX}{dead.pid}-y.pth", 0),
        place_temp(runs / f"{TEMP_PREFIX}def.pth", 3600),
        place_temp(folder / f"outputs/cache/{TEMP_PREFIX}k.npy", day),
    ]
    with kept[-1].open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["doctor"]) == 1
        captured = capsys.readouterr()
        assert "5 of 9 temporary files left over" in captured.err
        assert f"outputs/exp_1/checkpoints/{TEMP_PREFIX}abc.pth" in captured.out
        assert captured.out.count("1.0 kB") == 9
        assert all(path.exists() for path in gone + kept)
        assert main(["doctor", "--apply"]) == 0
        assert main(["doctor"]) == 0
    assert [path.exists() for path in gone + kept] == [False] * 5 + [True] * 4


def test_a_store_that_takes_nothing_is_told(sqlite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(sqlite)) as connection, connection:
        refuse = "BEGIN SELECT RAISE(ABORT, 'it is read-only'); END"
        connection.execute(f"CREATE TRIGGER no BEFORE INSERT ON experiment_tags {refuse}")
    assert main(["doctor", "--apply"]) == 1
    captured = capsys.readouterr()
    assert "writable   no: (sqlite3.IntegrityError) it is read-only" in captured.out
    assert "cannot be written" in captured.err


@pytest.mark.usefixtures("sqlite")
def test_what_does_not_agree_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("config/best_hparams/resnet18_A.yaml")
    path.parent.mkdir(parents=True)
    path.write_text("model: {name: resnet50}\n")
    assert main(["doctor", "--apply"]) == 1
    captured = capsys.readouterr()
    assert f"{path} is of resnet50_A" in captured.out
    assert "python -m src.promote --check" in captured.err


def test_without_a_store_it_says_what_it_can(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", "--apply"]) == 2
    captured = capsys.readouterr()
    assert "it does not exist yet" in captured.err
    assert "versions   python 3." in captured.out
    assert "devices    cpu (" in captured.out
    assert not list(folder.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    assert main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert "Connection refused" in captured.err
    assert "secret" not in captured.out + captured.err
    for missing in ("none", "outputs"):
        assert main(["doctor", "--output-dir", missing]) == 2
        assert f"--output-dir {missing}: no such folder" in capsys.readouterr().err


@pytest.mark.usefixtures("sqlite")
def test_a_run_that_came_alive_meanwhile_is_left_alone(dead: Heartbeat) -> None:
    resumed, ended = start_run(dead), start_run(dead)
    assert {one.run.run_id for one in check_running_runs([])} == {resumed, ended}
    client = mlflow.MlflowClient()
    client.set_tag(resumed, HEARTBEAT, Heartbeat.now().to_json())
    client.set_terminated(ended, "FAILED")
    assert not mark_killed(resumed, [])
    assert not mark_killed(ended, [])
    assert statuses(resumed, ended) == ["RUNNING", "FAILED"]


def test_a_run_that_was_only_paused_and_finishes_loses_the_reason_of_its_end(
    any_store: str, folder: Path
) -> None:
    """Its process was silent for so long, as on a laptop that slept, that another machine marked it."""
    assert any_store
    client = mlflow.MlflowClient()
    with tracked_run({}) as run:
        run.keep_in(folder / "outputs/mine")
        silent = long_ago(replace(Heartbeat.now(), host="elsewhere"), 60)
        client.set_tag(run.run_id, HEARTBEAT, silent.to_json())
        assert run.run_id in {one.run.run_id for one in check_running_runs([])}
        assert mark_killed(run.run_id, [])
        assert statuses(run.run_id) == ["KILLED"]
        assert "ended without a final status" in client.get_run(run.run_id).data.tags["error"]
    assert statuses(run.run_id) == ["FINISHED"]
    assert "error" not in client.get_run(run.run_id).data.tags


@pytest.mark.usefixtures("sqlite")
def test_a_late_delivery_of_a_finished_run_does_the_same(results: Path, dead: Heartbeat) -> None:
    run_id = start_run(long_ago(replace(dead, host="elsewhere"), 60))
    (found,) = check_running_runs([])
    assert mark_killed(found.run.run_id, [])
    journal = Journal.begin(results, run_id, "http://127.0.0.1:1")
    journal.add(journal.reserve(), STATUS, {"status": "FINISHED", "end_time": 5})
    assert main(["sync", str(results)]) == 0
    assert statuses(run_id) == ["FINISHED"]
    assert "error" not in mlflow.MlflowClient().get_run(run_id).data.tags
