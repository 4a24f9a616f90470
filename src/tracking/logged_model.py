"""The run's model as MLflow keeps it: a graph in ``pt2`` format, no pickle anywhere."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.errors import ClaimError
from src.tracking.archive import check_archive
from src.tracking.names import DELIVERY, LOGGED_MODEL
from src.tracking.store import local_folder, pages, reason, store_errors
from src.utils.io import atomic_write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from torch import nn


def log_model(
    module: "nn.Module",
    *,
    channels: int,
    size: int,
    classes: tuple[str, ...],
    step: int,
    metadata: dict[str, Any],
) -> str:
    """Logs a module on the active run and returns the id of the logged model.

    Args:
        module: uint8 pixels ``(N, channels, size, size)`` in, float32 probabilities ``(N, K)`` out.
        channels: Channels of the input.
        size: Side of the input in pixels.
        classes: The K class names.
        step: The epoch that the weights are from.
        metadata: Plain values that travel with the model.
    """
    import mlflow.pytorch

    options = _options(channels, size, classes, metadata)
    with _silenced():
        info = mlflow.pytorch.log_model(module.cpu().eval(), name=LOGGED_MODEL, step=step, **options)
    return str(info.model_id)


def save_model(
    module: "nn.Module",
    folder: Path,
    *,
    channels: int,
    size: int,
    classes: tuple[str, ...],
    metadata: dict[str, Any],
) -> None:
    """Writes what `log_model` would log into a folder that is not there yet; `deliver_model` logs it."""
    import mlflow.pytorch

    options = _options(channels, size, classes, metadata)
    with _silenced():
        mlflow.pytorch.save_model(module.cpu().eval(), str(folder), **options)


def _options(channels: int, size: int, classes: tuple[str, ...], metadata: dict[str, Any]) -> dict[str, Any]:
    import mlflow
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return {
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, channels, size, size))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
        ),
        # Black images: an example must not be a patient's. Two, for a batch of one is exported as fixed.
        "input_example": np.zeros((2, channels, size, size), dtype=np.uint8),
        "serialization_format": "pt2",
        # Named here, for MLflow would load the model in a second process to find out.
        "pip_requirements": [
            f"mlflow=={mlflow.__version__}",
            f"torch=={torch.__version__.split('+')[0]}",
            "numpy",
        ],
        "metadata": {"classes": list(classes), **metadata},
    }


def deliver_model(client: "MlflowClient", run_id: str, folder: Path, *, step: int, key: str) -> None:
    """Logs a saved model on a run; called again after it failed, it finishes what was begun.

    Args:
        client: Of the store.
        run_id: The run.
        folder: What `save_model` wrote.
        step: The epoch that the weights are from.
        key: Names this very model among those of the run.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    logged = _find_logged(client, run, key) or client.create_logged_model(
        run.info.experiment_id,
        LOGGED_MODEL,
        run_id,
        tags={name: value for name, value in run.data.tags.items() if _says_origin(name)} | {DELIVERY: key},
        params=run.data.params,
    )
    if logged.status != "READY":
        model = Model.load(str(folder))
        model.run_id, model.model_id, model.model_uuid = run_id, logged.model_id, logged.model_id
        model.artifact_path = logged.artifact_location
        atomic_write_text(folder / "MLmodel", model.to_yaml())
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
    there = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in {output.model_id for output in there}:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])


def _find_logged(client: "MlflowClient", run: "Run", key: str) -> "LoggedModel | None":
    mine = f"source_run_id = '{run.info.run_id}'"
    found = pages(lambda token: client.search_logged_models([run.info.experiment_id], mine, page_token=token))
    return next((logged for logged in found if logged.tags.get(DELIVERY) == key), None)


def _says_origin(tag: str) -> bool:
    return tag == "mlflow.user" or tag.startswith("mlflow.source.")


def load_model(source: str, folder: Path) -> "nn.Module":
    """Loads a logged model for the CPU, and executes nothing that came with it.

    Args:
        source: Where it is, such as ``models:/m-...``.
        folder: Where to copy it from a store that is no local folder.

    Raises:
        ClaimError: It is gone, damaged, or holds anything that would have to be executed to load it.
        TrackingError: The store failed.
    """
    import mlflow.pytorch
    from mlflow.models import Model

    with store_errors(f"the logged model {source} cannot be read"):
        try:
            path = _fetch(source, folder)
            flavor = Model.load(str(path)).flavors.get("pytorch", {})
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ClaimError(f"the logged model {source} is gone") from None
    data = path / str(flavor.get("model_data", "data"))
    # MLflow imports what a pickled model names before it looks at its own setting.
    if flavor.get("code") or (data / "model.pth").exists() or not (data / "model.pt2").is_file():
        raise ClaimError(f"the logged model {source} is not in pt2 format; nothing else is loaded here")
    check_archive(data / "model.pt2")
    with _silenced(), _without_pickle():
        try:
            module: nn.Module = mlflow.pytorch.load_model(str(path))
        except Exception as error:  # torch, zipfile and MLflow raise many kinds for a damaged file
            raise ClaimError(f"the logged model {source} cannot be loaded: {reason(error)}") from None
    return module


def _fetch(source: str, folder: Path) -> Path:
    import mlflow

    logged = mlflow.MlflowClient().get_logged_model(source.removeprefix("models:/"))
    local = local_folder(logged.artifact_location)
    return local or Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))


@contextlib.contextmanager
def _without_pickle() -> Iterator[None]:
    """``torch.export.load`` unpickles weights freely unless MLflow is told to look at them first."""
    name = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps the exporter's and MLflow's chatter off the terminal; errors still raise."""
    names = ("mlflow", "torch.export", "torch._export")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
