"""A server some of whose answers are not its own: what answers 200 need not have taken anything."""

import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from src import train
from src.store import main
from src.tracking.journal import ARTIFACT, FOLDER, METRICS, STATUS, Journal
from src.tracking.outbox import Outbox, UndeliveredError
from src.tracking.store import http_retries
from src.utils.io import atomic_write_text
from tests.images import write_npz
from tests.servers import Liar, Server
from tests.tracking.test_outbox import metrics, new_run, points
from tests.tracking.test_over_http import NAMED, check_epochs, only_run

pytestmark = pytest.mark.slow


@pytest.fixture
def liar(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Liar]:
    """A proxy before the server, truthful so far; MLFLOW_TRACKING_URI names it."""
    liar = Liar(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", liar.uri)
    yield liar
    liar.stop()


def record(results: Path, run_id: str) -> Outbox:
    """A short run, up to its end."""
    outbox = Outbox(results, run_id)
    fill(outbox)
    return outbox


def fill(outbox: Outbox) -> None:
    for step in (1, 2, 3):
        outbox.put(METRICS, metrics(step, a=step / 10, b=-step))
        path = outbox.results / "latest.pth"
        atomic_write_text(path, f"state {step}" * step)
        outbox.put_file(path, "checkpoints")
    outbox.put("params", {"epochs": "3"})
    outbox.put_status("FINISHED")


def check(run_id: str) -> None:
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"epochs": "3"})
    assert points(run_id, "a") == [(step, step / 10) for step in (1, 2, 3)]
    assert len(points(run_id, "b")) == 3
    assert Path(client.download_artifacts(run_id, "checkpoints/latest.pth")).read_text() == "state 3" * 3


@pytest.mark.parametrize("fault", ["html", "empty"])
@pytest.mark.parametrize("part", ["log-batch", "latest.pth"])
def test_what_an_answer_hid_is_sent_again(liar: Liar, results: Path, part: str, fault: str) -> None:
    run_id = new_run()
    with http_retries(0):
        liar.lie = lambda _method, path: fault if part in path and len(liar.told) < 2 else None
        record(results, run_id).close("FINISHED")
    assert liar.told == [fault, fault]
    check(run_id)
    assert [path.name for path in results.iterdir()] == ["latest.pth"]


def test_a_version_that_was_on_its_way_never_replaces_a_newer_one(liar: Liar, results: Path) -> None:
    run_id, is_on_its_way, is_recorded = new_run(), threading.Event(), threading.Event()

    def hold(_method: str, path: str) -> None:
        if "latest.pth" in path:
            is_on_its_way.set()
            assert is_recorded.wait(60)

    liar.lie = hold
    with http_retries(0):
        outbox = Outbox(results, run_id)
        atomic_write_text(results / "latest.pth", "old")
        outbox.put_file(results / "latest.pth", "checkpoints")
        assert is_on_its_way.wait(60)
        fill(outbox)
        is_recorded.set()
        outbox.close("FINISHED")
    check(run_id)


@pytest.mark.parametrize("part", ["log-batch", "latest.pth"])
def test_what_never_arrives_is_never_finished(
    liar: Liar, results: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = new_run()
    with http_retries(0):
        liar.lie = lambda _method, path: "empty" if part in path else None
        outbox = record(results, run_id)
        with pytest.raises(UndeliveredError, match=r"took it and does not hold it.*src\.store sync"):
            outbox.close("FINISHED")
    assert mlflow.MlflowClient().get_run(run_id).info.status == "RUNNING"
    assert main(["sync", str(results)]) == 1
    assert "does not hold them, the first: " in capsys.readouterr().err
    assert mlflow.MlflowClient().get_run(run_id).info.status == "RUNNING"
    liar.lie = lambda _method, _path: None
    assert main(["sync", str(results)]) == 0
    assert "the run is FINISHED" in capsys.readouterr().out
    check(run_id)


def test_a_history_that_is_hidden_makes_no_point_twice(liar: Liar, results: Path) -> None:
    run_id = new_run()
    with http_retries(0):
        # Each first answer to a batch is lost on its way, and the history is hidden for a while.
        lost: set[str] = set()

        def lie(_method: str, path: str) -> str | None:
            if "log-batch" in path and len(lost) < 2:
                lost.add(f"{len(lost)}")
                return "cut answer"
            return "empty" if "get-history" in path and len(liar.told) < 4 else None

        liar.lie = lie
        record(results, run_id).close("FINISHED")
    check(run_id)


def test_each_damaged_line_is_named_and_the_rest_delivered(
    liar: Liar, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, path = mlflow.MlflowClient(), results / FOLDER / "journal.jsonl"
    for line in range(2, 7):
        run_id = new_run()
        left = Journal.begin(results, run_id, liar.uri)
        for step in (1, 2, 3):
            left.add(left.reserve(), METRICS, metrics(step, a=step / 10))
        number = left.reserve(with_folder=True)
        atomic_write_text(left.folder_of(number) / "a.txt", "a")
        left.add(number, ARTIFACT, {"name": "a.txt", "folder": ""})
        left.add(left.reserve(), STATUS, {"status": "FINISHED", "end_time": None})
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line - 1] = lines[line - 1].replace(b":", b";", 2)
        path.write_bytes(b"".join(lines))
        assert main(["sync", str(results)]) == 1
        error = capsys.readouterr().err
        assert f"journal.jsonl, line {line}: damaged on disk" in error
        assert f"--resume {run_id}" in error
        assert client.get_run(run_id).info.status == "RUNNING"
        assert [step for step, _ in points(run_id, "a")] == [step for step in (1, 2, 3) if step != line - 1]
        assert [file.path for file in client.list_artifacts(run_id)] == ["a.txt"] * (line != 5)
        kept = [text for text in path.read_bytes().splitlines(keepends=True) if text != lines[line - 1]]
        path.write_bytes(b"".join(kept))
        assert main(["sync", str(results)]) == 0
        assert client.get_run(run_id).info.status == ("KILLED" if line == 6 else "FINISHED")
        capsys.readouterr()


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(2, 7))]
)
def test_a_training_before_a_liar(
    liar: Liar, server: Server, folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(folder / "small.npz")
    liar.lie_at_random(seed, 0.2)
    code, tries = train.main([*NAMED, "--epochs", "3"]), 0
    assert len(liar.told) > 5
    with monkeypatch.context() as truth:
        truth.setenv("MLFLOW_TRACKING_URI", server.uri)
        assert (only_run().info.status == "FINISHED") == (code == 0)
    while code != 0 and tries < 40:
        code, tries = main(["sync", "outputs/mine"]), tries + 1
    assert code == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = only_run()
    assert run.info.status == "FINISHED"
    check_epochs(run, 3, folder)
    assert run.data.params["training.epochs"] == "3"
    assert run.inputs is not None
    assert {one.dataset.name for one in run.inputs.dataset_inputs} >= {"A-train", "A-val"}
    assert run.outputs is not None
    model_id = run.outputs.model_outputs[-1].model_id
    assert mlflow.MlflowClient().get_logged_model(model_id).status == "READY"
    assert mlflow.pytorch.load_model(f"models:/{model_id}") is not None
