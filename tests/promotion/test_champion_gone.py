"""A champion that ``src.predict`` refuses: ``--check`` and ``doctor`` say so, with what brings it back."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from src import predict, promote, store
from tests.promotion.runs import Made, make_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sqlite")]


@pytest.fixture
def champion(npz: Path) -> Made:
    """Version 2, in an experiment of its own; version 1 is of another."""
    make_run(npz, 0.5, start_time=1_000)
    assert promote.main([]) == 0
    made = make_run(npz, 1.0, start_time=2_000, experiment="mine")
    assert promote.main([]) == 0
    assert promote.main(["--check"]) == 0
    assert store.main(["doctor"]) == 0
    return made


def model_of(run_id: str) -> str:
    outputs = mlflow.MlflowClient().get_run(run_id).outputs
    assert outputs is not None
    return str(outputs.model_outputs[0].model_id)


def delete_run(run_id: str) -> None:
    mlflow.MlflowClient().delete_run(run_id)


def delete_experiment(run_id: str) -> None:
    client = mlflow.MlflowClient()
    client.delete_experiment(client.get_run(run_id).info.experiment_id)


def delete_model(run_id: str) -> None:
    mlflow.MlflowClient().delete_logged_model(model_of(run_id))


def remove_artifacts(run_id: str) -> None:
    shutil.rmtree(mlflow.MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://"))


def remove_model_files(run_id: str) -> None:
    location = mlflow.MlflowClient().get_logged_model(model_of(run_id)).artifact_location
    shutil.rmtree(location.removeprefix("file://"))


@pytest.mark.parametrize(
    ("lose", "said", "restore"),
    [
        (delete_run, "mlflow runs restore --run-id {run_id}", ["runs", "restore", "--run-id", "{run_id}"]),
        (
            delete_experiment,
            "mlflow experiments restore --experiment-id {experiment}",
            ["experiments", "restore", "--experiment-id", "{experiment}"],
        ),
        (delete_model, "the logged model models:/{model} is deleted or gone", None),
        (remove_artifacts, "its artifact config.yaml is gone", None),
        (remove_model_files, "the logged model models:/{model} lacks MLmodel, data/model.pt2", None),
    ],
)
def test_check_and_doctor_see_what_predict_sees(
    champion: Made,
    npz: Path,
    lose: Callable[[str], None],
    said: str,
    restore: list[str] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "run_id": champion.run_id,
        "experiment": mlflow.MlflowClient().get_run(champion.run_id).info.experiment_id,
        "model": model_of(champion.run_id),
    }
    lose(champion.run_id)
    said = said.format(**names)
    predicted = ["--model", "resnet18", "--modality", "A", "--input", str(npz)]
    assert predict.main(predicted) != 0
    if restore is not None:
        assert said in capsys.readouterr().err  # predict answers the same
    assert promote.main(["--check"]) == 1
    captured = capsys.readouterr()
    assert "version 2, the champion, cannot be used" in captured.out
    assert said in captured.out
    assert store.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert said in captured.out
    assert "not all agree: resnet18_A" in captured.err
    if restore is not None:
        command = [sys.executable, "-m", "mlflow", *(word.format(**names) for word in restore)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
    else:
        assert promote.main(["--rollback", "--model", "resnet18", "--modality", "A"]) == 0
    assert promote.main(["--check"]) == 0
    assert store.main(["doctor"]) == 0


def test_a_champion_that_names_no_run(
    champion: Made, sqlite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(sqlite)) as connection, connection:
        connection.execute("UPDATE model_versions SET run_id = NULL WHERE version = 2")
    assert promote.main(["--check"]) == 1
    captured = capsys.readouterr().out
    assert "version 2, the champion, cannot be used: it was registered manually without a run" in captured
    assert f"names version 2 of run {champion.run_id}, the champion is version 2 of no run" in captured
