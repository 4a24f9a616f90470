"""The runs of a store as retention sees them, and how their files and they themselves are removed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.contained import remove_tree
from .candidates import search_runs
from .names import BEST_VAL_AUC, CHECKPOINTS, DATA_FINGERPRINT, MODALITY, MODEL, ROLE
from .places import model_place, run_place
from .store import pages, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

CLEANED = "cleanup"
"""Tag of a run: what was removed of it, and when."""


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
        artifact_uri: Where the store says that its artifacts are; `place` holds that against the rest.
        experiment_id: Its experiment.
        location: The artifact location of the experiment.
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
    experiment_id: str
    location: str
    models: tuple[str, ...]

    def place(self) -> Path | None:
        """Return the folder of the artifacts on this machine, None where a server or a bucket has them.

        Raises:
            ClaimError: The store says that they are somewhere else than the run's own are.
        """
        return run_place(self.run_id, self.artifact_uri, self.experiment_id, self.location)


def past_runs() -> list[PastRun]:
    """All training runs of this project, of all experiments; those of other tools are left alone.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors("the runs cannot be read"):
        locations = locations_of(client)
        found = search_runs(client, list(locations), "")
        return [past_of(run, locations) for run in found if "experiment.name" in run.data.params]


def locations_of(client: "MlflowClient") -> dict[str, str]:
    """The artifact location of every experiment by its id."""
    found = pages(lambda token: client.search_experiments(page_token=token))
    return {experiment.experiment_id: experiment.artifact_location or "" for experiment in found}


def past_of(run: "Run", locations: Mapping[str, str]) -> PastRun:
    """A run of MLflow's as retention sees it; ``locations`` are those of `locations_of`."""
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
        params.get("experiment.name", ""),
        params.get("experiment.output_dir", "outputs"),
        run.info.artifact_uri,
        run.info.experiment_id,
        locations[run.info.experiment_id],
        tuple(output.model_id for output in run.outputs.model_outputs) if run.outputs else (),
    )


def registered_versions() -> Mapping[str, tuple[str, ...]]:
    """The registered versions, such as ``resnet18_A version 2``, by the run and by the model they are of.

    A version can name another run than its model's, or none: both keep the model.

    Raises:
        TrackingError: The registry cannot be read.
    """
    import mlflow

    client, found = mlflow.MlflowClient(), dict[str, tuple[str, ...]]()
    with store_errors("the registry cannot be read"):
        for version in pages(lambda token: client.search_model_versions(page_token=token)):
            for key in {version.run_id, _model_of(version)} - {None, ""}:
                found[str(key)] = (*found.get(str(key), ()), f"{version.name} version {version.version}")
    return found


def _model_of(version: Any) -> str | None:  # noqa: ANN401
    source = str(version.source or "")
    return (
        source.removeprefix("models:/")
        if source.startswith("models:/")
        else getattr(version, "model_id", None)
    )


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


def own_models(run: PastRun) -> Iterator["LoggedModel"]:
    """The logged models that the run has made, deleted ones apart; any store can list others as well.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    client = mlflow.MlflowClient()
    for model_id in run.models:
        with store_errors(f"the logged model {model_id} of run {run.run_id} cannot be read"):
            try:
                logged = client.get_logged_model(model_id)
            except mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                continue
        if logged.source_run_id == run.run_id:
            yield logged


def place_of_model(run: PastRun, logged: "LoggedModel") -> Path | None:
    """The folder of a run's logged model; see `PastRun.place`."""
    return model_place(logged.model_id, logged.artifact_location, run.experiment_id, run.location)


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
        ClaimError: The store says that they are somewhere else than the run's own are.
        TrackingError: The store failed.
        OSError: A file cannot be removed.
    """
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    root = run.place()
    with store_errors(f"the checkpoints of run {run.run_id} cannot be removed"):
        mlflow.MlflowClient().set_tag(run.run_id, CLEANED, f"checkpoints removed {when}")
        if root is None:
            get_artifact_repository(run.artifact_uri).delete_artifacts(CHECKPOINTS)
    if root is not None and root.is_dir():
        remove_tree(root, root / CHECKPOINTS)


def delete_run(run: PastRun, when: str) -> None:
    """Marks a run and its logged models deleted; `purge` removes them for good.

    Raises:
        TrackingError: The store failed.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors(f"run {run.run_id} cannot be deleted"):
        client.set_tag(run.run_id, CLEANED, f"run removed {when}")
        for logged in own_models(run):
            client.delete_logged_model(logged.model_id)
        client.delete_run(run.run_id)
