"""Runs as training leaves them, made in a moment: a real store, real predictions, a real model."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag
from torch import Tensor, nn

from src.data.dataset import Dataset, load_dataset
from src.evaluation.metrics import evaluate, softmax
from src.evaluation.predictions import Predictions, write_predictions
from src.tracking.logged_model import save_model
from src.tracking.store import open_store
from src.training.optim import resolve_defaults
from src.utils.config import Config


class Brightness(nn.Module):
    """Probabilities from an image's brightness, which tells the classes apart, and a part that does not.

    The larger ``quality``, 0 to 1, the higher the AUC; another ``salt`` errs on other images.
    """

    quality: Tensor
    salt: Tensor

    def __init__(self, quality: float, salt: float) -> None:
        super().__init__()
        self.register_buffer("quality", torch.tensor(quality))
        self.register_buffer("salt", torch.tensor(salt))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits(pixels).softmax(dim=1)

    def logits(self, pixels: Tensor) -> Tensor:
        values = pixels.float() / 255
        signal = 10 * (values.mean(dim=(1, 2, 3)) - 0.5)
        noise = 2 * torch.sin(1000 * values[:, 0, 0, 0] + 777 * values[:, 0, 1, 1] + self.salt)
        logit = self.quality * signal + (1 - self.quality) * noise
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


@functools.lru_cache
def data_of(path: str) -> Dataset:
    config = Config.from_dict({"data": {"root_dir": path, "test_fraction": 0}})
    return load_dataset(config.data, Path(path).parent / "cache")


@dataclass(frozen=True)
class Made:
    run_id: str
    val_auc: float


def make_run(
    data: Path,
    quality: float,
    *,
    salt: float = 0.0,
    model: str = "resnet18",
    modality: str = "A",
    experiment: str = "Default",
    status: str | None = "FINISHED",
    claim: float | None = None,
    tags: dict[str, str | None] | None = None,
    start_time: int | None = None,
    logged_quality: float | None = None,
) -> Made:
    """One run.

    Args:
        data: What it was trained on.
        quality: Of its model; see `Brightness`.
        salt: Of its model as well.
        model: Its tag.
        modality: Its tag.
        experiment: Where it is.
        status: How it ended; None leaves it RUNNING.
        claim: The ``best_val_auc`` that it logs, instead of the true one.
        tags: More tags; None takes one away.
        start_time: Milliseconds since the epoch.
        logged_quality: Of the logged model, instead of the true one.
    """
    open_store()
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment)
    dataset = data_of(str(data))
    network = Brightness(quality, salt)
    val = dataset.splits["val"]
    logits = network.logits(dataset.batch("val", np.arange(len(val))))
    scores = evaluate(val.labels, logits, 0.5)
    auc = scores.auc if claim is None else claim
    run = client.create_run(number, start_time=start_time)
    run_id = run.info.run_id
    all_tags: dict[str, str | None] = {
        "model": model,
        "modality": modality,
        "data.fingerprint": dataset.fingerprint,
        "split.fingerprint": dataset.split_fingerprint,
        "config.sha256": "0" * 64,
        "seed": "0",
        **(tags or {}),
    }
    metrics = {"best_epoch": 1.0, "best_val_auc": auc, "best_val_acc": scores.acc, "best_threshold": 0.5}
    metrics |= {"best_val_sensitivity": scores.sensitivity, "best_val_specificity": scores.specificity}
    metrics |= {"test_auc": 0.75, "test_acc": 0.7, "test_sensitivity": 0.6, "test_specificity": 0.8}
    client.log_batch(
        run_id,
        [Metric(key, value, 1_700_000_000_000, 1) for key, value in metrics.items()],
        [Param("training.epochs", "1")],
        [RunTag(key, value) for key, value in all_tags.items() if value is not None],
    )
    config = {
        "data": {
            "root_dir": str(data),
            "modalities": modality.split("+"),
            "cache_dir": str(data.parent / "cache"),
        },
        "model": {"name": model},
    }
    stored = "" if " " in modality else resolve_defaults(Config.from_dict(config)).to_yaml()
    client.log_text(run_id, stored, "config.yaml")
    made = Predictions(val.hashes, val.patients, val.labels, softmax(logits), dataset.classes)
    write_predictions(Path("val.csv"), made)
    client.log_artifact(run_id, "val.csv", "predictions")
    Path("val.csv").unlink()
    _log_model(client, number, run_id, exported(quality if logged_quality is None else logged_quality, salt))
    if status is not None:
        client.set_terminated(run_id, status)
    return Made(run_id, auc)


def _log_model(client: mlflow.MlflowClient, experiment: str, run_id: str, model: str) -> None:
    """Uploads an exported model as a logged model; exporting each anew would take seconds."""
    logged = client.create_logged_model(experiment, "model", run_id)
    client.log_model_artifacts(logged.model_id, model)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 1)])


_EXPORTED: list[tempfile.TemporaryDirectory[str]] = []


@functools.lru_cache
def exported(quality: float, salt: float) -> str:
    """The folder of a model that the project's own code has saved."""
    _EXPORTED.append(tempfile.TemporaryDirectory(prefix="exported-"))  # deleted with this process
    folder = Path(_EXPORTED[-1].name) / "model"
    network: Any = Brightness(quality, salt)
    save_model(network, folder, channels=1, size=16, classes=("0", "1"), metadata={})
    return str(folder)
