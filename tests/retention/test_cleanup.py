"""Freeing the disk by the real command, in both stores, beside a training that goes on."""

import os
import shutil
import time
from pathlib import Path

import mlflow
import pytest

from src import cleanup, predict, promote, train
from src.training.run_folder import RunFolders
from tests.conftest import FROM_SCRATCH, Run
from tests.stores import place_store

pytestmark = pytest.mark.slow

MODEL = "shufflenet_v2_x0_5"
TRAIN = ["--model", MODEL, "--data", "small.npz", "--epochs", "1", "--set", "training.batch_size=16"]
TRAIN += FROM_SCRATCH
NOW = ["--keep-days", "0", "--keep-best", "1"]


def train_named(name: str, rate: str) -> str:
    sets = [f"experiment.name={name}", f"training.learning_rate={rate}"]
    assert train.main([*TRAIN, *(item for value in sets for item in ("--set", value))]) == 0
    (run,) = mlflow.MlflowClient().search_runs(["0"], f"params.`experiment.name` = '{name}'")
    return str(run.info.run_id)


def used(folder: Path) -> int:
    """Bytes on disk below a folder, what has several names counted once."""
    states = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({(s.st_dev, s.st_ino): s.st_size for s in states}.values())


both_stores = pytest.mark.parametrize(
    "runs", ["sqlite", pytest.param("file", marks=pytest.mark.exhaustive)], indirect=True
)


@pytest.fixture
def runs(
    request: pytest.FixtureRequest, folder: Path, npz: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Three runs of one group; the best of them is registered."""
    assert npz.exists()
    if getattr(request, "param", "sqlite") == "file":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(folder / "files"))
    else:
        place_store(folder / "mlflow.db")
    found = {
        name: train_named(name, rate) for name, rate in (("one", "1e-3"), ("two", "1e-4"), ("three", "1e-5"))
    }
    assert promote.main([]) == 0
    return found


def registered(runs: dict[str, str]) -> str:
    version = mlflow.MlflowClient().get_model_version_by_alias(f"{MODEL}_A", "champion")
    return next(name for name, run_id in runs.items() if run_id == version.run_id)


def checkpoints(name: str, run_id: str) -> list[Path]:
    run = mlflow.MlflowClient().get_run(run_id)
    places = (Path(f"outputs/{name}"), Path(run.info.artifact_uri.removeprefix("file://")))
    return [path for place in places for path in place.rglob("*.pth")]


@both_stores
def test_checkpoints_go_and_everything_else_stays(
    folder: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    champion = registered(runs)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert cleanup.main(NOW) == 0
    assert "nothing was changed" in capsys.readouterr().out
    databases = {path for path in before if path.name.startswith("mlflow.db")}
    assert {path: path.stat().st_mtime_ns for path in before.keys() - databases} == {
        path: when for path, when in before.items() if path not in databases
    }
    sizes = used(folder)
    assert cleanup.main([*NOW, "--apply"]) == 0
    out = capsys.readouterr().out
    assert "kept whole   1 registered" in out
    for name, run_id in runs.items():
        assert bool(checkpoints(name, run_id)) == (name == champion)
        assert Path(f"outputs/{name}/predictions/val.csv").exists()
        assert mlflow.MlflowClient().get_run(run_id).data.tags.get("cleanup", "kept")[:4] == (
            "kept" if name == champion else "chec"
        )
    assert sizes - used(folder) > 2 * 3_000_000  # ShuffleNet's weights and AdamW's state, twice
    assert cleanup.main([*NOW, "--apply"]) == 0
    assert "to remove    0 things" in capsys.readouterr().out
    assert promote.main(["--check"]) == 0
    assert predict.main(["--model", MODEL, "--modality", "A", "--input", "small.npz"]) == 0


@both_stores
def test_whole_runs_go_with_all_that_is_theirs(folder: Path, runs: dict[str, str]) -> None:
    champion = registered(runs)
    assert cleanup.main([*NOW, "--runs", "--apply"]) == 0
    left = mlflow.MlflowClient().search_runs(["0"])
    assert [run.info.run_id for run in left] == [runs[champion]]
    for name, run_id in runs.items():
        traces = [p for p in folder.rglob("*") if run_id in str(p) or f"/{name}/" in str(p)]
        assert bool(traces) == (name == champion), traces
    assert len(list(folder.rglob("model.pt2"))) == 1
    assert promote.main(["--check"]) == 0


def test_a_live_run_is_left_alone_and_a_failed_delete_stops_nothing(
    runs: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = registered(runs)
    name, other = (name for name in runs if name != champion)
    real = shutil.rmtree

    def refusing(path: str, *args: object, dir_fd: int, **options: object) -> None:
        if Path(f"/proc/self/fd/{dir_fd}").readlink() == Path(f"outputs/{other}").absolute():
            raise PermissionError(1, "Operation not permitted", path)
        real(path, *args, dir_fd=dir_fd, **options)  # type: ignore[arg-type]

    with RunFolders(Path("outputs"), name).lock(), monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refusing)
        assert cleanup.main([*NOW, "--apply"]) == 1
    err = capsys.readouterr().err
    assert "another process is training this run" in err
    assert "Operation not permitted" in err
    assert "2 things are left, named above" in err
    assert len(checkpoints(name, runs[name])) == 4
    # What had failed half-way is gone on with.
    assert cleanup.main([*NOW, "--apply"]) == 0
    assert not checkpoints(name, runs[name]) + checkpoints(other, runs[other])


def test_old_caches_and_leftovers_go(
    folder: Path, npz: Path, run_python: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert npz.exists()
    # A process of its own, for one that trains has the pack mapped.
    assert run_python("-m", "src.train", *TRAIN, "--set", "experiment.name=one").returncode == 0
    (pack,) = (folder / "outputs/cache/packs").glob("*.npy")
    left = folder / "outputs/one/.tmp-999999999-x"
    left.write_bytes(bytes(1000))
    week = time.time() - 8 * 86_400
    for path in (pack, left):
        os.utime(path, (week, week))
    assert cleanup.main(["--apply"]) == 0
    out = capsys.readouterr().out
    assert "not used for 8 days" in out
    assert not pack.exists()
    assert not left.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep-best", "x"], "--keep-best: expected a whole number from 0, got 'x'"),
        (["--keep-best", "1.5"], "--keep-best: expected a whole number from 0, got '1.5'"),
        (["--keep-days", "-1"], "expected a number of days from 0, got '-1'"),
        ([], "it does not exist yet"),
    ],
)
def test_what_it_does_not_take(capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert cleanup.main(options) == 2
    assert said in capsys.readouterr().err
