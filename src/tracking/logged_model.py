"""Logged models: a run's model as a graph in ``pt2`` format, without any pickle."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow import MlflowClient, MlflowException
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Run
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from ..errors import ClaimError
from ..utils.console import silenced
from ..utils.io import TEMP_PREFIX, atomic_write_text
from ..utils.project import local_folder
from .artifact_paths import model_folder
from .names import DELIVERED_EPOCH, LOGGED_MODEL
from .pt2_check import checked_copy
from .store import mlflow_client, reason, resolve_uri, store_errors

if TYPE_CHECKING:
    from torch import nn

_TALKATIVE = ("mlflow", "torch.export", "torch._export")

_DATA = "data"
_FLAVORS: dict[str, dict[str, Any]] = {
    "pytorch": {"code": None, "model_data": _DATA},
    "python_function": {
        "code": None,
        "data": _DATA,
        "loader_module": "mlflow.pytorch",
        "pickle_module_name": "mlflow.pytorch.pickle_module",
    },
}
"""Every key of MLmodel that names a file or a module, with the value that this project writes."""
_HARMLESS = {"pytorch_version", "python_version", "config", "env"}
_NEEDED = ("MLmodel", "data/model.pt2")
"""Files without which `load_model` refuses a model."""


def log_model(
    client: MlflowClient, run_id: str, save: Callable[[Path], None], step: int, work: Path | None
) -> None:
    """Log a model on a run; a second call after a failure or kill completes the first.

    MLflow's own function links the model to the run before the model's files exist, and in a file store
    it logs the metrics of the step on the run a second time.

    Args:
        client: MLflow's client.
        run_id: The run.
        save: Writes the model into a folder that does not exist yet, as `save_model` does.
        step: The epoch of the weights.
        work: Where to save it temporarily; None for the system's folder of temporary files.
    """
    with tempfile.TemporaryDirectory(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=work) as folder:
        saved = Path(folder) / LOGGED_MODEL
        save(saved)
        model_id = deliver_model(client, run_id, saved, step)
    if local_folder(resolve_uri()) is None:
        _copy_metrics(client, run_id, model_id, step)


def _copy_metrics(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Log the run's metrics of the model's epoch on the model as well; a database keeps each once."""
    histories = (client.get_metric_history(run_id, key) for key in client.get_run(run_id).data.metrics)
    points = (point for history in histories for point in history if point.step == step)
    # With the run's id, the run does not get the same points again.
    theirs = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id, run_id=run_id) for p in points]
    client.log_batch(run_id, theirs)


def save_model(
    module: "nn.Module",
    folder: Path,
    *,
    channels: int,
    size: int,
    classes: tuple[str, ...],
    metadata: dict[str, Any],
) -> None:
    """Save a model into a folder that does not exist yet; `deliver_model` logs it."""
    import torch

    options = {
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, channels, size, size))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
        ),
        # Black images, since an example must not show a patient; two, since a batch of one is exported as
        # a fixed batch size.
        "input_example": np.zeros((2, channels, size, size), dtype=np.uint8),
        "serialization_format": "pt2",
        # Given here, since MLflow would load the model in a second process to infer them.
        "pip_requirements": [
            f"mlflow=={mlflow.__version__}",
            f"torch=={torch.__version__.split('+')[0]}",
            "numpy",
        ],
        "metadata": {"classes": list(classes), **metadata},
    }
    with silenced(*_TALKATIVE):
        mlflow.pytorch.save_model(module.cpu().eval(), str(folder), **options)


def deliver_model(client: MlflowClient, run_id: str, folder: Path, step: int) -> str:
    """Log a saved model on a run; a second call after a failure completes the first.

    Args:
        client: MLflow's client.
        run_id: The run.
        folder: The folder that `save_model` wrote.
        step: The epoch of the weights; a run has one model per epoch.

    Returns:
        The id of the logged model.
    """
    run = client.get_run(run_id)
    origin = {
        key: tag
        for key, tag in run.data.tags.items()
        if key == "mlflow.user" or key.startswith("mlflow.source.")
    }
    logged = _find_logged(run, step) or client.create_logged_model(
        run.info.experiment_id,
        LOGGED_MODEL,
        run_id,
        tags={**origin, DELIVERED_EPOCH: str(step)},
        params=run.data.params,
    )
    if logged.status != "READY":
        model = Model.load(str(folder))
        model.run_id, model.model_id, model.model_uuid = run_id, logged.model_id, logged.model_id
        model.artifact_path = logged.artifact_location
        atomic_write_text(folder / "MLmodel", model.to_yaml())
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
    outputs = run.outputs.model_outputs if run.outputs else []
    if logged.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    return str(logged.model_id)


def _find_logged(run: Run, step: int) -> LoggedModel | None:
    mine = f"source_run_id = '{run.info.run_id}'"
    found = mlflow.search_logged_models([run.info.experiment_id], mine, output_format="list")
    return next((logged for logged in found if logged.tags.get(DELIVERED_EPOCH) == str(step)), None)


@dataclass(frozen=True)
class LoadedModel:
    """A logged model: the network on the CPU, and the metadata that `save_model` got."""

    module: "nn.Module"
    metadata: Mapping[str, Any]


def load_model(source: str, folder: Path) -> LoadedModel:
    """Load a logged model for the CPU, without executing any code that comes with it.

    Args:
        source: Its URI, such as ``models:/m-...``.
        folder: Where to download it to if the store is not a local folder.

    Raises:
        ClaimError: It is missing, damaged, or cannot be loaded without executing something in it.
        OSError: A file cannot be read, or the folder of temporary files cannot be written.
        TrackingError: The store failed.
    """
    import torch

    path, metadata = _read_description(source, folder)
    # Not by mlflow.pytorch.load_model, which reads MLmodel and the archive again and may unpickle.
    with silenced(*_TALKATIVE), checked_copy(path) as archive:
        try:
            module: nn.Module = torch.export.load(archive).module()
        except Exception as error:  # torch raises many kinds for a graph that does not fit together
            raise ClaimError(f"the logged model {source} cannot be loaded: {reason(error)}") from None
    return LoadedModel(module, metadata)


def _read_description(source: str, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the archive and the metadata of a logged model."""
    with store_errors(f"the logged model {source} cannot be read"):
        try:
            logged = mlflow_client().get_logged_model(source.removeprefix("models:/"))
            local = _local_folder(logged)
            path = local or Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))
            model = Model.load(str(path))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ClaimError(f"the logged model {source} is gone") from None
    data = path / _DATA
    if (data / "model.pth").exists() or not (data / "model.pt2").is_file():
        raise ClaimError(f"the logged model {source} is not in pt2 format; nothing else is loaded here")
    _check_flavors(source, _mapping(model.flavors))
    return data / "model.pt2", _mapping(model.metadata)


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 -- any YAML
    return value if isinstance(value, Mapping) else {}


def _check_flavors(source: str, flavors: Mapping[str, Any]) -> None:
    """Check that MLflow would load the archive as well, and import no other code."""
    for flavor, known in _FLAVORS.items():
        found = _mapping(flavors.get(flavor))
        for key in sorted(known.keys() | found.keys() - _HARMLESS):
            if key not in known or found.get(key) != known[key]:
                raise ClaimError(
                    f"the logged model {source} is not loaded, and nothing in it was executed, since this "
                    f"project does not write what its MLmodel says: {flavor}.{key} is "
                    f"{str(found.get(key))[:80]!r}; restore the file from a backup, or train the model again"
                )


def check_model_files(source: str) -> None:
    """Check, without loading it, that a logged model exists and has its files.

    Args:
        source: Its URI, such as ``models:/m-...``.

    Raises:
        ClaimError: It is deleted, a file is missing, or the store names a folder that is not its own.
        TrackingError: The store failed.
    """
    client, model_id = mlflow_client(), source.removeprefix("models:/")
    with store_errors(f"the logged model {source} cannot be read"):
        try:
            logged = client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ClaimError(f"the logged model {source} is deleted or gone") from None
        folder = _local_folder(logged)
        if folder is not None:
            missing = [name for name in _NEEDED if not (folder / name).is_file()]
        else:
            listed = {
                entry.path
                for below in (None, _DATA)
                for entry in client.list_logged_model_artifacts(model_id, below)
            }
            missing = [name for name in _NEEDED if name not in listed]
    if missing:
        where = folder or "the server"
        raise ClaimError(
            f"the logged model {source} lacks {', '.join(missing)} at {where}; put its files back"
        )


def _local_folder(logged: LoggedModel) -> Path | None:
    """Return the folder of a logged model's files on this machine; see `model_folder`."""
    experiment = mlflow_client().get_experiment(logged.experiment_id)
    location = experiment.artifact_location or ""
    return model_folder(logged.model_id, logged.artifact_location, experiment.experiment_id, location)
