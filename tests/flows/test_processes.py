"""What only real processes show: two at once, and a kill before there is a run."""

import functools
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, clean_environment
from tests.flows.processes import STORES, TINY, only_run, runs, start
from tests.forked import ForkedProcess

pytestmark = pytest.mark.slow


@pytest.mark.exhaustive
@pytest.mark.parametrize("store", STORES)
@pytest.mark.usefixtures("npz")
def test_two_at_once_in_a_fresh_folder(folder: Path, store: str) -> None:
    env: dict[str, Any] = {"MLFLOW_TRACKING_URI": STORES[store]} if STORES[store] else {}
    both = [start(folder, "-m", "src.train", *TINY, **env) for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    finished = runs(folder, STORES[store])
    assert [run.info.status for run in finished] == ["FINISHED", "FINISHED"]
    assert len({run.data.metrics["best_val_auc"] for run in finished}) == 1
    assert len(list(folder.glob("outputs/exp_*/checkpoints/best_model.pth"))) == 2


@pytest.mark.usefixtures("npz")
def test_killed_while_the_store_is_made(folder: Path, run_python: Run) -> None:
    process = start(folder, "-m", "src.train", *TINY)
    deadline = time.monotonic() + 120
    while not (folder / ".tmp-mlflow.db").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    assert not (folder / "mlflow.db").exists()
    done = run_python("-m", "src.train", *TINY)
    assert done.returncode == 0, done.stderr
    assert only_run(folder).info.status == "FINISHED"
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.usefixtures("npz")
def test_a_disk_that_takes_no_checkpoint_fails_the_run(folder: Path) -> None:
    """A file-size limit stands in for a full disk: the store fits below it, a checkpoint does not."""
    limit = 2_000_000
    limit_files = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    environment = clean_environment(folder / "torch")
    process = ForkedProcess("src.train", TINY, folder, environment, prepare=limit_files)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "File too large" in error
    assert "latest.pth" in error
    assert "Traceback" not in error
    run = only_run(folder)
    assert run.info.status == "FAILED"
    assert "File too large" in run.data.tags["error"]
    assert not list(folder.rglob(".tmp-*"))
    assert not list(folder.rglob("*.pth"))
