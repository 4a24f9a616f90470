"""Deleted runs, removed for good: what they hold, and nothing else that is deleted."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ClaimError, TrackingError
from ..utils.contained import contained, remove_tree
from .past_runs import CLEANED, PastRun, locations_of, past_of, place_of_model
from .store import is_server, local_path, pages, resolve_uri, store_errors


def unpurged() -> list[PastRun]:
    """Runs that `delete_run` has marked and that were not removed for good.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow
    from mlflow.entities import ViewType

    client, deleted = mlflow.MlflowClient(), ViewType.DELETED_ONLY
    with store_errors("the runs cannot be read"):
        locations, mine = locations_of(client), f"tags.{CLEANED} LIKE 'run removed%'"
        found = pages(lambda token: client.search_runs(list(locations), mine, deleted, page_token=token))
        return [past_of(run, locations) for run in found]


def purge(runs: Iterable[PastRun]) -> list[str]:
    """Removes deleted runs and their logged models for good, with their own artifacts.

    ``mlflow gc`` does more: it deletes the folder that any URI names, and each experiment and logged
    model that somebody has deleted in the UI and may want to restore.

    Returns:
        Which files were left alone, and why.

    Raises:
        TrackingError: It failed, or the store is a server's, where only its own machine can.
    """
    from mlflow.tracking._tracking_service.utils import _get_store

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


def _purge(backend: Any, run: PastRun) -> Iterator[str]:  # noqa: ANN401 -- any of MLflow's stores
    _check_own_folder(run)
    deleted = set(backend._get_deleted_logged_models())
    for model_id in deleted.intersection(run.models):
        logged = backend.get_logged_model(model_id, allow_deleted=True)
        if logged.source_run_id == run.run_id:
            yield from _free(partial(place_of_model, run, logged), logged.artifact_location)
            backend._hard_delete_logged_model(model_id)
    yield from _free(run.place, run.artifact_uri)
    backend._hard_delete_run(run.run_id)


def _free(place: Callable[[], Path | None], uri: str) -> Iterator[str]:
    """Deletes the artifacts at a place, and the folder that they were in."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        folder = place()
    except ClaimError as error:
        yield str(error)
        return
    if folder is None:
        get_artifact_repository(uri).delete_artifacts()
    elif folder.is_dir():
        remove_tree(folder.parent, folder)
        with suppress(OSError):  # a file store keeps the run itself there
            folder.parent.rmdir()


def _check_own_folder(run: PastRun) -> None:
    """Refuses a run of a file store whose folder a link leads out of the store.

    Raises:
        ClaimError: It does.
    """
    root = local_path(resolve_uri())
    if root is not None and root.is_dir():
        folder = root / run.experiment_id / run.run_id
        if folder.exists() and contained(root, folder) is None:
            raise ClaimError(f"run {run.run_id}: a link at {folder} leads out of the store; it is left alone")
