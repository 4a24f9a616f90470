"""Deletion of runs, with their checkpoints, artifacts and logged models."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowException
from mlflow.entities import LoggedModel, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking._tracking_service.utils import _get_store

from ..errors import ClaimError, TrackingError
from ..utils.contained import contained, remove_tree
from ..utils.project import local_path
from .artifact_paths import model_folder
from .names import CHECKPOINTS, CLEANUP, TERMINAL_STATUSES
from .queries import search_runs
from .store import is_server, mlflow_client, resolve_uri, store_errors
from .stored_run import StoredRun


def training_runs() -> list[StoredRun]:
    """Return all training runs of this project, of all experiments, but no runs of other tools.

    Raises:
        TrackingError: The store cannot be read.
    """
    with store_errors("the runs cannot be read"):
        return [run for run in search_runs() if run.is_training]


def registered_versions() -> Mapping[str, tuple[str, ...]]:
    """Return the registered versions, such as ``resnet18_A version 2``, by run id and by model id.

    A version may name another run than its model's, or none; both then keep the model.

    Raises:
        TrackingError: The registry cannot be read.
    """
    found = dict[str, tuple[str, ...]]()
    with store_errors("the registry cannot be read"):
        for version in mlflow.search_model_versions():
            for key in {version.run_id, _model_of(version)} - {None, ""}:
                found[str(key)] = (*found.get(str(key), ()), f"{version.name} version {version.version}")
    return found


def _model_of(version: ModelVersion) -> str | None:
    source = version.source or ""
    return source.removeprefix("models:/") if source.startswith("models:/") else version.model_id


def artifact_bytes(run: StoredRun, folder: str) -> int:
    """Return the size of a run's artifacts in a folder on a server.

    Raises:
        TrackingError: The store cannot be read.
    """
    with store_errors(f"the artifacts of run {run.run_id} cannot be listed"):
        listed = mlflow_client().list_artifacts(run.run_id, folder or None)
    return sum(
        artifact_bytes(run, entry.path) if entry.is_dir else int(entry.file_size or 0) for entry in listed
    )


def own_models(run: StoredRun) -> Iterator[LoggedModel]:
    """Yield the existing logged models that the run created; a store may list others on it as well.

    Raises:
        TrackingError: The store cannot be read.
    """
    client = mlflow_client()
    for model_id in run.models:
        with store_errors(f"the logged model {model_id} of run {run.run_id} cannot be read"):
            try:
                logged = client.get_logged_model(model_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                continue
        if logged.source_run_id == run.run_id:
            yield logged


def own_model_folder(run: StoredRun, logged: LoggedModel) -> Path | None:
    """Return the folder of a run's logged model; see `StoredRun.artifact_folder`."""
    location = run.artifact_location
    return model_folder(logged.model_id, logged.artifact_location, run.experiment_id, location)


def has_ended(run_id: str) -> bool:
    """Return whether a run has ended by now.

    Raises:
        TrackingError: The store cannot be read.
    """
    with store_errors(f"run {run_id} cannot be read"):
        info = mlflow_client().get_run(run_id).info
    return info.status in TERMINAL_STATUSES and info.end_time is not None


def delete_checkpoints(run: StoredRun, when: str) -> None:
    """Delete the checkpoints among the run's artifacts, and record that as a tag of the run.

    Raises:
        ClaimError: The store points to a folder that does not belong to the run.
        TrackingError: The store failed.
        OSError: A file cannot be deleted.
    """
    root = run.artifact_folder()
    with store_errors(f"the checkpoints of run {run.run_id} cannot be removed"):
        mlflow_client().set_tag(run.run_id, CLEANUP, f"checkpoints removed {when}")
        if root is None:
            get_artifact_repository(run.artifact_uri).delete_artifacts(CHECKPOINTS)
    if root is not None and root.is_dir():
        remove_tree(root, root / CHECKPOINTS)


def delete_run(run: StoredRun, when: str) -> None:
    """Mark a run and its logged models deleted; `purge` removes them permanently.

    Raises:
        TrackingError: The store failed.
    """
    client = mlflow_client()
    with store_errors(f"run {run.run_id} cannot be deleted"):
        client.set_tag(run.run_id, CLEANUP, f"run removed {when}")
        for logged in own_models(run):
            client.delete_logged_model(logged.model_id)
        client.delete_run(run.run_id)


def unpurged_runs() -> list[StoredRun]:
    """Return the runs that `delete_run` has deleted and that still have to be purged.

    Raises:
        TrackingError: The store cannot be read.
    """
    with store_errors("the runs cannot be read"):
        return list(search_runs(f"tags.{CLEANUP} LIKE 'run removed%'", ViewType.DELETED_ONLY))


def purge(runs: Iterable[StoredRun]) -> list[str]:
    """Remove deleted runs and their logged models permanently, with their own artifacts.

    ``mlflow gc`` removes more: the folder that any URI names, and each experiment and logged model that
    was deleted in the UI and may be restored.

    Returns:
        Which files were left alone, and why.

    Raises:
        TrackingError: The store failed, or is a server, where only its own machine can purge.
    """
    uri = resolve_uri()
    if is_server(uri):
        raise TrackingError(
            "the runs are deleted; what they hold is freed by `mlflow gc` on the server's own machine"
        )
    backend, left = _get_store(uri), list[str]()
    for run in runs:
        with store_errors(f"run {run.run_id} is deleted, and the next cleanup frees what it holds"):
            left += _purge(backend, run)
    return left


def _purge(backend: Any, run: StoredRun) -> Iterator[str]:  # noqa: ANN401 -- any of MLflow's stores
    _check_own_folder(run)
    deleted = set(backend._get_deleted_logged_models())
    for model_id in deleted.intersection(run.models):
        logged = backend.get_logged_model(model_id, allow_deleted=True)
        if logged.source_run_id == run.run_id:
            yield from _free(partial(own_model_folder, run, logged), logged.artifact_location)
            backend._hard_delete_logged_model(model_id)
    yield from _free(run.artifact_folder, run.artifact_uri)
    backend._hard_delete_run(run.run_id)


def _free(find_folder: Callable[[], Path | None], uri: str) -> Iterator[str]:
    """Delete artifacts, and the folder that they were in."""
    try:
        folder = find_folder()
    except ClaimError as error:
        yield str(error)
        return
    if folder is None:
        get_artifact_repository(uri).delete_artifacts()
    elif folder.is_dir():
        remove_tree(folder.parent, folder)
        with suppress(OSError):  # a file store keeps the run itself there
            folder.parent.rmdir()


def _check_own_folder(run: StoredRun) -> None:
    """Refuse a run of a file store whose folder is behind a link that leads out of the store."""
    root = local_path(resolve_uri())
    if root is not None and root.is_dir():
        folder = root / run.experiment_id / run.run_id
        if folder.exists() and contained(root, folder) is None:
            raise ClaimError(f"run {run.run_id}: a link at {folder} leads out of the store; it is left alone")
