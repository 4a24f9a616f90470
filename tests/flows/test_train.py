"""One real training, looked at from every side."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow.entities import Run

from src.evaluation.predictions import read_predictions
from src.models.build import build_model
from src.train import main
from src.utils.config import Config
from tests.conftest import FROM_SCRATCH, clean_environment
from tests.images import write_npz

PARTS = ["--epochs", "3", "--set", "training.batch_size=8", "--set", "evaluation.threshold=youden"]
PARTS += ["--set", "model.stem=imagenet", *FROM_SCRATCH]  # at 16 px the quick stem
COLUMNS = ["train_loss", "val_loss", "val_acc", "val_auc", "val_sensitivity", "val_specificity"]


@dataclass(frozen=True)
class Trained:
    folder: Path
    run: Run
    artifacts: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of the real command in a fresh folder with MLflow's default store."""
    folder = tmp_path_factory.mktemp("trained")
    write_npz(folder / "small.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for key, value in clean_environment(folder / "torch").items():
            patch.setenv(key, value)
        assert main(["--model", "resnet18", "--modality", "P", "--data", "small.npz", *PARTS]) == 0
        (run,) = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["0"])
        artifacts = Path(
            mlflow.artifacts.download_artifacts(run_id=run.info.run_id, tracking_uri=uri(folder))
        )
    return Trained(folder, run, artifacts)


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def client(trained: Trained) -> mlflow.MlflowClient:
    os.chdir(trained.folder)  # the store's artifact paths start there
    return mlflow.MlflowClient(uri(trained.folder))


def history(trained: Trained) -> list[dict[str, str]]:
    with (trained.artifacts / "training_history.csv").open() as file:
        return list(csv.DictReader(file))


def test_status_tags_and_params(trained: Trained) -> None:
    data = trained.run.data
    assert trained.run.info.status == "FINISHED"
    assert data.tags["model"] == "resnet18"
    assert data.tags["modality"] == "P"
    assert data.tags["seed"] == "0"
    assert len(data.tags["data.fingerprint"]) == len(data.tags["split.fingerprint"]) == 64
    assert data.params["training.batch_size"] == "8"
    assert data.params["model.weights"] == "none"
    assert data.params["model.stem"] == "imagenet"
    assert data.params["data.image_size"] == "16"
    assert data.tags["data.leaked_images"] == "0"


def test_one_value_per_metric_and_epoch_equal_to_the_csv(
    trained: Trained, client: mlflow.MlflowClient
) -> None:
    rows = history(trained)
    assert list(rows[0]) == ["epoch", *COLUMNS]
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for name in COLUMNS:
        points = client.get_metric_history(trained.run.info.run_id, name)
        assert [(p.step, p.value) for p in points] == [
            (i + 1, float(row[name])) for i, row in enumerate(rows)
        ]


def test_best_metrics_are_those_of_the_best_epoch(trained: Trained) -> None:
    metrics, rows = trained.run.data.metrics, history(trained)
    best = max(rows, key=lambda row: float(row["val_auc"]))
    assert metrics["best_epoch"] == int(best["epoch"])
    for name in ("val_auc", "val_acc", "val_loss", "val_sensitivity", "val_specificity"):
        assert metrics[f"best_{name}"] == float(best[name])
    assert 0.5 < metrics["test_auc"] <= 1


def test_artifacts_and_files_on_disk(trained: Trained) -> None:
    name = trained.run.data.params["experiment.name"]
    assert name.startswith("exp_")
    assert trained.run.info.run_name == name.replace("exp", "resnet18_P")
    assert name.endswith(trained.run.info.run_id[:8])
    logs, results = trained.folder / "outputs/logs" / name, trained.folder / "outputs" / name
    for path in ("config.yaml", "training_history.csv"):
        assert (trained.artifacts / path).read_bytes() == (logs / path).read_bytes()
    for path in (
        "checkpoints/latest.pth",
        "checkpoints/best_model.pth",
        "predictions/val.csv",
        "plots/roc.png",
    ):
        assert (trained.artifacts / path).read_bytes() == (results / path).read_bytes()


def test_checkpoint_is_plain_and_loads_by_hand(trained: Trained) -> None:
    assert {path.name for path in trained.folder.glob("outputs/*/checkpoints/*")} == {
        "latest.pth",
        "best_model.pth",
    }
    latest = torch.load(trained.artifacts / "checkpoints/latest.pth")
    assert latest["epoch"] == 3
    assert latest["run_id"] == trained.run.info.run_id
    assert latest["best_val_auc"] == trained.run.data.metrics["best_val_auc"]
    assert len(latest["history"]) == 3
    assert {"optimizer_state_dict", "scheduler_state_dict"} <= set(latest)
    model = build_model("resnet18", num_classes=2, channels=1, size=16, stem="imagenet").model
    model.load_state_dict(latest["model_state_dict"])
    best = torch.load(trained.artifacts / "checkpoints/best_model.pth")
    assert best["epoch"] == trained.run.data.metrics["best_epoch"]


@pytest.mark.usefixtures("client")
def test_logged_model_equals_the_predictions(trained: Trained) -> None:
    assert trained.run.outputs is not None
    (output,) = trained.run.outputs.model_outputs
    model = mlflow.pytorch.load_model(f"models:/{output.model_id}")
    data = np.load(trained.folder / "small.npz")
    for split in ("val", "test"):
        stored = read_predictions(trained.artifacts / f"predictions/{split}.csv")
        pixels = torch.from_numpy(data[f"{split}_images"])[:, None]
        given = model(pixels).detach().numpy()
        # Predictions are in the order of the fingerprint: compare as sets of rows.
        assert np.allclose(np.sort(given[:, 1]), np.sort(stored.probabilities[:, 1]), atol=1e-5)
        assert stored.classes == ("0", "1")
    signature = mlflow.models.get_model_info(f"models:/{output.model_id}").signature
    assert signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 1, 16, 16)}


def test_threshold_is_chosen_on_val_and_applied_to_test(trained: Trained) -> None:
    metrics = trained.run.data.metrics
    test = read_predictions(trained.artifacts / "predictions/test.csv")
    positive = test.probabilities[:, 1] >= metrics["best_threshold"]
    assert metrics["test_sensitivity"] == positive[test.labels == 1].mean()
    assert metrics["test_specificity"] == (~positive)[test.labels == 0].mean()


def test_dataset_inputs(trained: Trained) -> None:
    assert trained.run.inputs is not None
    inputs = trained.run.inputs.dataset_inputs
    contexts = {tag.value for entry in inputs for tag in entry.tags if tag.key == "mlflow.data.context"}
    assert contexts == {"training", "validation", "testing"}
    assert all(trained.run.data.tags["data.fingerprint"].startswith(entry.dataset.digest) for entry in inputs)


def test_exported_config_trains_the_same_run_again(trained: Trained, folder: Path) -> None:
    config = trained.artifacts / "config.yaml"
    assert Config.from_file(config).experiment.name is None
    os.chdir(trained.folder)
    other = folder / "again"
    assert main(["--config", str(config), "--set", f"experiment.output_dir={other}"]) == 0
    (again,) = other.glob("logs/*/training_history.csv")
    assert again.read_bytes() == (trained.artifacts / "training_history.csv").read_bytes()
    (first,) = (trained.folder / "outputs").glob("exp_*/checkpoints/latest.pth")
    (second,) = other.glob("exp_*/checkpoints/latest.pth")
    one, two = torch.load(first)["model_state_dict"], torch.load(second)["model_state_dict"]
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_config_in_the_run_shows_every_setting(trained: Trained) -> None:
    values = yaml.safe_load((trained.artifacts / "config.yaml").read_text())
    assert values == Config.from_file(trained.artifacts / "config.yaml").to_dict()
