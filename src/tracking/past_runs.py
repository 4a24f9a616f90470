"""The runs of a store as retention sees them, and how their files and they themselves are removed."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import TrackingError
from src.tracking.candidates import experiment_ids, search_runs
from src.tracking.names import BEST_VAL_AUC, CHECKPOINTS, DATA_FINGERPRINT, MODALITY, MODEL, ROLE
from src.tracking.store import is_server, local_folder, pages, resolve_uri, store_errors

if TYPE_CHECKING:
    from mlflow.entities import Run

CLEANED = "cleanup"
"""Tag of a run: what was removed of it, and when."""
_AT_ONCE = 200  # ids on one command line


@dataclass(frozen=True)
class PastRun:
    """A training run of this project.

    Attributes:
        run_id: Its id.
        name: What MLflow shows.
        model: Its tag, None for a run of another kind.
        modality: Likewise.
        data: Its data's fingerprint, "" without.
        status: MLflow's status.
        val_auc: Its ``best_val_auc``, None without.
        started: Milliseconds since the epoch.
        ended: Likewise, None while it has not.
        folder: The name of its folder on disk.
        output_dir: Where that folder is.
        artifact_uri: Where its artifacts are.
        models: The ids of its logged models.
    """

    run_id: str
    name: str
    model: str | None
    modality: str | None
    data: str
    status: str
    val_auc: float | None
    started: int
    ended: int | None
    folder: str
    output_dir: str
    artifact_uri: str
    models: tuple[str, ...]


def past_runs() -> list[PastRun]:
    """All training runs of this project, of all experiments; those of other tools are left alone.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors("the runs cannot be read"):
        found = search_runs(client, experiment_ids(client, None), "")
        return [_past(run) for run in found if "experiment.name" in run.data.params]


def _past(run: "Run") -> PastRun:
    tags, params = run.data.tags, run.data.params
    competes = ROLE not in tags
    return PastRun(
        run.info.run_id,
        run.info.run_name or "",
        tags.get(MODEL) if competes else None,
        tags.get(MODALITY) if competes else None,
        tags.get(DATA_FINGERPRINT, ""),
        run.info.status,
        run.data.metrics.get(BEST_VAL_AUC),
        run.info.start_time,
        run.info.end_time,
        params["experiment.name"],
        params.get("experiment.output_dir", "outputs"),
        run.info.artifact_uri,
        tuple(output.model_id for output in run.outputs.model_outputs) if run.outputs else (),
    )


def registered_runs() -> Mapping[str, tuple[str, ...]]:
    """The registered versions, such as ``resnet18_A version 2``, by the run that they are of.

    Raises:
        TrackingError: The registry cannot be read.
    """
    import mlflow

    client, found = mlflow.MlflowClient(), dict[str, tuple[str, ...]]()
    with store_errors("the registry cannot be read"):
        for version in pages(lambda token: client.search_model_versions(page_token=token)):
            of_run = found.get(version.run_id or "", ())
            found[version.run_id or ""] = (*of_run, f"{version.name} version {version.version}")
    return found


def is_registered(run_id: str) -> bool:
    """Whether a registered version is of this run at this moment.

    Raises:
        TrackingError: The registry cannot be read.
    """
    import mlflow

    with store_errors("the registry cannot be read"):
        return bool(mlflow.MlflowClient().search_model_versions(f"run_id='{run_id}'", max_results=1))


def artifact_files(run: PastRun, folder: str = "") -> list[Path]:
    """The run's artifacts below a folder, where they are on this machine's disk."""
    root = local_folder(run.artifact_uri)
    return [] if root is None else [path for path in (root / folder).rglob("*") if path.is_file()]


def artifact_bytes(run: PastRun, folder: str) -> int:
    """The size of a run's artifacts in a folder, at a server.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    with store_errors(f"the artifacts of run {run.run_id} cannot be listed"):
        listed = mlflow.MlflowClient().list_artifacts(run.run_id, folder or None)
    below = (
        artifact_bytes(run, entry.path) if entry.is_dir else int(entry.file_size or 0) for entry in listed
    )
    return sum(below)


def model_folders(run: PastRun) -> list[Path]:
    """Where the run's logged models are, on this machine's disk."""
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors(f"the logged models of run {run.run_id} cannot be read"):
        found = [local_folder(client.get_logged_model(model).artifact_location) for model in run.models]
    return [folder for folder in found if folder is not None]


def has_ended(run_id: str) -> bool:
    """Whether a run is over at this moment.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    with store_errors(f"run {run_id} cannot be read"):
        info = mlflow.MlflowClient().get_run(run_id).info
    return info.status in ("FINISHED", "FAILED", "KILLED") and info.end_time is not None


def delete_checkpoints(run: PastRun, when: str) -> None:
    """Removes the run's checkpoints from its artifacts, and says so on the run.

    Raises:
        TrackingError: The store failed.
        OSError: A file cannot be removed.
    """
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client, root = mlflow.MlflowClient(), local_folder(run.artifact_uri)
    with store_errors(f"the checkpoints of run {run.run_id} cannot be removed"):
        client.set_tag(run.run_id, CLEANED, f"checkpoints removed {when}")
        if root is None:
            get_artifact_repository(run.artifact_uri).delete_artifacts(CHECKPOINTS)
    if root is not None and (root / CHECKPOINTS).exists():
        shutil.rmtree(root / CHECKPOINTS)


def delete_run(run: PastRun, when: str) -> None:
    """Marks a run and its logged models deleted; `purge` removes them for good.

    Raises:
        TrackingError: The store failed.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors(f"run {run.run_id} cannot be deleted"):
        client.set_tag(run.run_id, CLEANED, f"run removed {when}")
        for model in run.models:
            client.delete_logged_model(model)
        client.delete_run(run.run_id)


def unpurged() -> list[PastRun]:
    """Runs that `delete_run` has marked and that were not removed for good.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow
    from mlflow.entities import ViewType

    client, deleted = mlflow.MlflowClient(), ViewType.DELETED_ONLY
    with store_errors("the runs cannot be read"):
        ids, mine = experiment_ids(client, None), f"tags.{CLEANED} LIKE 'run removed%'"
        found = pages(lambda token: client.search_runs(ids, mine, deleted, page_token=token))
        return [_past(run) for run in found]


def purge(runs: Sequence[PastRun]) -> None:
    """Removes deleted runs and their logged models for good, by ``mlflow gc``.

    Raises:
        TrackingError: That failed, or the store is a server's, where only its own machine can.
    """
    uri = resolve_uri()
    if is_server(uri):
        raise TrackingError(
            "the runs are deleted; what they hold is freed by `mlflow gc` on the server's own machine"
        )
    for start in range(0, len(runs), _AT_ONCE):
        some = runs[start : start + _AT_ONCE]
        _gc(uri, [run.run_id for run in some], [model for run in some for model in run.models])
        for folder in (root.parent for run in some if (root := local_folder(run.artifact_uri))):
            with contextlib.suppress(OSError):  # it leaves the folder that the artifacts were in
                folder.rmdir()


def _gc(uri: str, run_ids: Iterable[str], models: Iterable[str]) -> None:
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    command += ["--run-ids", ",".join(run_ids)]
    if named := ",".join(models):
        command += ["--logged-model-ids", named]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        *_, last = ["", *done.stderr.strip().splitlines()]
        raise TrackingError(
            f"mlflow gc failed: {last}; the runs are deleted, and the next cleanup tries again"
        )
