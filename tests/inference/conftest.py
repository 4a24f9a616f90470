"""A folder in which a model was trained and promoted, once for each file of tests."""

from pathlib import Path

import mlflow
import pytest

from src import promote, train
from tests.conftest import FROM_SCRATCH, clean_environment
from tests.images import write_folder
from tests.stores import place_store

MODEL = "shufflenet_v2_x0_5"
NAMED = ["--model", MODEL, "--modality", "A"]
TRAIN = [*NAMED, "--data", "d", "--epochs", "2", "--set", "training.batch_size=8"]
TRAIN += [*FROM_SCRATCH, "--set", r"data.patient_regex=^([A-Za-z]+\d+)_"]
TRAIN += ["--set", "evaluation.threshold=youden", "--set", "experiment.name=first"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: data in ``d``, run ``first``, its model registered."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for key, value in clean_environment(folder / "torch").items():
            patch.setenv(key, value)
        write_folder(folder / "d", counts={"train": 24, "val": 16, "test": 16}, size=32)
        name_by_patient(folder / "d")
        place_store(folder / "mlflow.db")
        assert train.main(TRAIN) == 0
        assert promote.main(NAMED) == 0
    return folder


def name_by_patient(root: Path) -> None:
    """Two images of one class are a patient's, who is in one split."""
    for folder in root.rglob("*"):
        for number, path in enumerate(sorted(folder.glob("*.png"))):
            path.rename(folder / f"{folder.parent.name}{folder.name}{number // 2:02d}_{number}.png")


@pytest.fixture
def trained(workshop: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """The test works in there."""
    assert folder.exists()  # the environment is clean
    monkeypatch.chdir(workshop)
    return workshop


def champion() -> "mlflow.entities.model_registry.ModelVersion":
    return mlflow.MlflowClient().get_model_version_by_alias(f"{MODEL}_A", "champion")
