"""The run's model as MLflow keeps it: a graph in ``pt2`` format, no pickle anywhere."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ClaimError
from ..utils.io import TEMP_PREFIX, atomic_write_text
from ..utils.silence import silenced
from .archive import checked_copy
from .model_files import local_model_folder
from .names import DELIVERY, LOGGED_MODEL
from .store import local_folder, pages, reason, resolve_uri, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
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
"""What MLmodel says about how to load the model, in every key that names a file or a module."""
_HARMLESS = {"pytorch_version", "python_version", "config", "env"}


def log_model(
    client: "MlflowClient", run_id: str, save: Callable[[Path], None], step: int, work: Path | None
) -> None:
    """Logs a model on a run; called again after it failed or was killed, it finishes what was begun.

    MLflow's own function tells the run of the model before its files are there, and gives the run of a
    file store the metrics of the step a second time.

    Args:
        client: Of the store.
        run_id: The run.
        save: Writes the model into a folder that is not there yet, as `save_model` does.
        step: The epoch that its weights are from.
        work: Where it may lie for a moment; None for the system's folder of temporary files.
    """
    with tempfile.TemporaryDirectory(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir=work) as folder:
        saved = Path(folder) / LOGGED_MODEL
        save(saved)
        model_id = deliver_model(client, run_id, saved, step)
    if local_folder(resolve_uri()) is None:
        _give_metrics(client, run_id, model_id, step)


def _give_metrics(client: "MlflowClient", run_id: str, model_id: str, step: int) -> None:
    """The run's metrics of the model's epoch become the model's as well; a database keeps each once."""
    from mlflow.entities import Metric

    histories = (client.get_metric_history(run_id, key) for key in client.get_run(run_id).data.metrics)
    points = (point for history in histories for point in history if point.step == step)
    # The same points, told whose they are: the run does not get them again.
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
    """Writes what `log_model` would log into a folder that is not there yet; `deliver_model` logs it."""
    import mlflow.pytorch

    options = _options(channels, size, classes, metadata)
    with silenced(*_TALKATIVE):
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


def deliver_model(client: "MlflowClient", run_id: str, folder: Path, step: int) -> str:
    """Logs a saved model on a run; called again after it failed, it finishes what was begun.

    Args:
        client: Of the store.
        run_id: The run.
        folder: What `save_model` wrote.
        step: The epoch that the weights are from; a run has one model of each.

    Returns:
        The id of the logged model.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    logged = _find_logged(client, run, step) or client.create_logged_model(
        run.info.experiment_id,
        LOGGED_MODEL,
        run_id,
        tags={name: value for name, value in run.data.tags.items() if _says_origin(name)}
        | {DELIVERY: str(step)},
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
    return str(logged.model_id)


def _find_logged(client: "MlflowClient", run: "Run", step: int) -> "LoggedModel | None":
    mine = f"source_run_id = '{run.info.run_id}'"
    found = pages(lambda token: client.search_logged_models([run.info.experiment_id], mine, page_token=token))
    return next((logged for logged in found if logged.tags.get(DELIVERY) == str(step)), None)


def _says_origin(tag: str) -> bool:
    return tag == "mlflow.user" or tag.startswith("mlflow.source.")


@dataclass(frozen=True)
class LoadedModel:
    """A logged model: what `save_model` was given, on the CPU, and the metadata that went with it."""

    module: "nn.Module"
    metadata: Mapping[str, Any]


def load_model(source: str, folder: Path) -> LoadedModel:
    """Load a logged model for the CPU, and execute nothing that came with it.

    Args:
        source: Where it is, such as ``models:/m-...``.
        folder: Where to copy it from a store that is no local folder.

    Raises:
        ClaimError: It is gone, damaged, or holds anything that would have to be executed to load it.
        OSError: A file cannot be read, or the folder of temporary files cannot be written.
        TrackingError: The store failed.
    """
    import torch

    path, metadata = _read_description(source, folder)
    # Not by mlflow.pytorch.load_model: it reads MLmodel and the archive again, and unpickles where it may.
    with silenced(*_TALKATIVE), checked_copy(path) as archive:
        try:
            module: nn.Module = torch.export.load(archive).module()
        except Exception as error:  # torch raises many kinds for a graph that does not fit together
            raise ClaimError(f"the logged model {source} cannot be loaded: {reason(error)}") from None
    return LoadedModel(module, metadata)


def _read_description(source: str, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the archive of a logged model, and its metadata."""
    import mlflow
    from mlflow.models import Model

    with store_errors(f"the logged model {source} cannot be read"):
        try:
            path = _fetch(source, folder)
            model = Model.load(str(path))
        except mlflow.MlflowException as error:
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
    """Check that MLflow too, asked for this model, would load the archive and import no other code.

    Raises:
        ClaimError: MLmodel names another file or module.
    """
    for flavor, known in _FLAVORS.items():
        found = _mapping(flavors.get(flavor))
        for key in sorted(known.keys() | found.keys() - _HARMLESS):
            if key not in known or found.get(key) != known[key]:
                raise ClaimError(
                    f"the logged model {source} is not loaded, and nothing in it was executed, since this "
                    f"project does not write what its MLmodel says: {flavor}.{key} is "
                    f"{str(found.get(key))[:80]!r}; restore the file from a backup, or train the model again"
                )


def _fetch(source: str, folder: Path) -> Path:
    import mlflow

    logged = mlflow.MlflowClient().get_logged_model(source.removeprefix("models:/"))
    local = local_model_folder(logged)
    return local or Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))
