"""A project folder that was moved, by the real commands in both stores."""

import os
import shutil
from pathlib import Path

import mlflow
import pytest

from src import predict, promote, store, train
from tests.conftest import FROM_SCRATCH
from tests.images import write_npz
from tests.stores import place_store

pytestmark = pytest.mark.slow

MODEL = "shufflenet_v2_x0_5"
TRAIN = ["--model", MODEL, "--data", "small.npz", "--epochs", "1", "--set", "training.batch_size=16"]
TRAIN += [*FROM_SCRATCH, "--promote"]


@pytest.fixture(params=["sqlite", pytest.param("file", marks=pytest.mark.exhaustive)])
def moved(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a promoted run, moved; the process works in it."""
    old, new = folder / "old place", folder / "new" / "place"
    old.mkdir()
    new.parent.mkdir()
    monkeypatch.chdir(old)
    write_npz(old / "small.npz")
    if request.param == "file":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(old / "mlruns"))
    else:
        place_store(old / "mlflow.db")
    assert train.main(TRAIN) == 0
    monkeypatch.chdir(folder)
    shutil.move(old, new)
    if request.param == "file":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(new / "mlruns"))
    monkeypatch.chdir(new)
    return new


def predicted() -> int:
    return predict.main(["--model", MODEL, "--modality", "A", "--input", "small.npz"])


def test_everything_resolves_again(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predicted() != 0
    capsys.readouterr()
    assert store.main(["relocate"]) == 0
    assert "old place lead here now" in capsys.readouterr().out
    assert predicted() == 0
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} >= {
        "config.yaml",
        "checkpoints",
        "plots",
    }
    version = client.get_model_version_by_alias(f"{MODEL}_A", "champion")
    local = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}")
    assert Path(local).is_relative_to(moved)
    assert promote.main(["--check"]) == 0
    assert promote.main(["--force"]) == 0  # its model is there, and gives what the run claims
    assert train.main(TRAIN) == 0
    client.create_run("0")  # one that has kept nothing lacks nothing
    assert store.main(["relocate"]) == 0
    assert "no path had to be changed" in capsys.readouterr().out


def test_a_copy_is_a_store_of_its_own(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.main(["relocate"]) == 0
    copy = moved.parent / "copy"
    shutil.copytree(moved, copy)
    monkeypatch.chdir(copy)
    if "MLFLOW_TRACKING_URI" in os.environ:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(copy / "mlruns"))
    assert store.main(["relocate"]) == 0
    client = mlflow.MlflowClient()
    for run in client.search_runs(["0"]):
        assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(copy)


def test_what_was_lost_on_the_way_is_named(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (moved / "mlruns").rglob("MLmodel")
    shutil.rmtree(file.parent)
    assert store.main(["relocate"]) == 1
    assert "are neither here nor where the store says" in capsys.readouterr().err
