"""StoredRun: the one view of a run that was read from the store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import mlflow
from mlflow.entities import Experiment, Run

from ..errors import TrackingError
from ..evaluation.metric_names import BEST_VAL_AUC
from ..utils.cli import warn
from ..utils.contained import contained
from . import names
from .artifact_paths import run_folder
from .store import mlflow_client, reason, store_errors


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run of the store.

    `find_candidates` fills in only what ranking needs, since it reads thousands of runs.

    Attributes:
        run_id: The run's id.
        experiment_id: The id of its experiment.
        experiment: The name of its experiment.
        artifact_location: The artifact location of its experiment.
        artifact_uri: Where the store says that the run's files are; `artifact_folder` checks it.
        name: The name that MLflow shows.
        status: MLflow's status.
        start_time: Milliseconds since the epoch.
        end_time: Milliseconds since the epoch; None if the run has not ended.
        metrics: The last value of each metric.
        tags: The run's tags.
        params: The run's params.
        models: The ids of its logged models, newest first.
        best_at: When ``best_val_auc`` was last logged, milliseconds since the epoch; set by `read_run` only.
    """

    run_id: str
    experiment_id: str = ""
    experiment: str = ""
    artifact_location: str = ""
    artifact_uri: str = ""
    name: str = ""
    status: str = names.FINISHED
    start_time: int = 0
    end_time: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    best_at: int = 0

    @classmethod
    def from_mlflow(cls, run: Run, experiment: Experiment, best_at: int = 0) -> Self:
        """Convert MLflow's run."""
        outputs = run.outputs.model_outputs if run.outputs else []
        newest_first = sorted(outputs, key=lambda output: -output.step)
        return cls(
            run.info.run_id,
            experiment.experiment_id,
            experiment.name,
            experiment.artifact_location or "",
            run.info.artifact_uri,
            run.info.run_name or "",
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            dict(run.data.metrics),
            dict(run.data.tags),
            dict(run.data.params),
            tuple(output.model_id for output in newest_first),
            best_at,
        )

    @property
    def is_training(self) -> bool:
        """Return whether it is a training run of this project that got as far as its params."""
        return names.RUN_FOLDER in self.params

    @property
    def is_candidate(self) -> bool:
        """Return whether it competes with others: a training run, not an evaluation, fold or search."""
        return names.ROLE not in self.tags and names.MODEL in self.tags and names.MODALITY in self.tags

    @property
    def group(self) -> tuple[str, str]:
        """Return model and modality, empty if the tag is missing: runs of the same group compete."""
        return self.tags.get(names.MODEL, ""), self.tags.get(names.MODALITY, "")

    @property
    def val_auc(self) -> float:
        """Return the last ``best_val_auc``, NaN if there is none."""
        return self.metrics.get(BEST_VAL_AUC, float("nan"))

    @property
    def data_fingerprint(self) -> str | None:
        """Return the fingerprint of its images and labels."""
        return self.tags.get(names.DATA_FINGERPRINT)

    @property
    def split_fingerprint(self) -> str | None:
        """Return the fingerprint of its split."""
        return self.tags.get(names.SPLIT_FINGERPRINT)

    @property
    def fingerprints(self) -> tuple[str | None, str | None]:
        """Return the fingerprints of data and split; runs with the same pair are comparable."""
        return self.data_fingerprint, self.split_fingerprint

    @property
    def allowed_leaks(self) -> str | None:
        """Return how many training images are also in another split, None if the run does not say."""
        return self.tags.get(names.ALLOWED_LEAKS)

    @property
    def is_leaky(self) -> bool:
        """Return whether the user allowed a leak between splits, so that its scores may be too good."""
        return self.allowed_leaks not in (None, "0")

    @property
    def folder_name(self) -> str:
        """Return the name of the run's folder on disk."""
        return self.params.get(names.RUN_FOLDER, "")

    @property
    def output_dir(self) -> str:
        """Return the folder that holds the run's folder."""
        return self.params.get(names.OUTPUT_DIR, "outputs")

    @property
    def model_source(self) -> str | None:
        """Return the URI of the newest logged model, ``models:/m-...``, or None."""
        return f"models:/{self.models[0]}" if self.models else None

    def artifact_folder(self) -> Path | None:
        """Return the folder of the artifacts on this machine, None if a server or a bucket has them.

        Raises:
            ClaimError: The store points to a folder that does not belong to the run.
        """
        return run_folder(self.run_id, self.artifact_uri, self.experiment_id, self.artifact_location)

    def fetch(self, name: str, folder: Path) -> Path | None:
        """Return an artifact as a local file, None if it is missing or a link.

        Args:
            name: Its path among the artifacts, such as ``predictions/val.csv``.
            folder: Where to download it to if the store is not a local folder.

        Raises:
            ClaimError: The store points to a folder that does not belong to the run.
            TrackingError: The store failed.
        """
        local = self.artifact_folder()
        if local is not None:
            file = contained(local, local / name)
            return file if file is not None and file.is_file() else None
        target = folder / self.run_id
        target.mkdir(parents=True, exist_ok=True)
        with store_errors(f"{name} of run {self.run_id} cannot be read"):
            listed = mlflow_client().list_artifacts(self.run_id, str(Path(name).parent).strip("."))
            if name not in {entry.path for entry in listed}:
                return None
            download = mlflow.artifacts.download_artifacts
            return Path(download(run_id=self.run_id, artifact_path=name, dst_path=str(target)))


def read_run(run_id: str) -> StoredRun:
    """Read a run.

    Raises:
        TrackingError: The run does not exist, or it was deleted.
    """
    client = mlflow_client()
    with store_errors(f"run {run_id} cannot be read"):
        run = client.get_run(run_id)
        points = client.get_metric_history(run_id, BEST_VAL_AUC)
        experiment = client.get_experiment(run.info.experiment_id)
    if run.info.lifecycle_stage != "active":
        raise TrackingError(f"run {run_id} {restore_hint(run_id, experiment)}")
    best_at = max((point.timestamp for point in points), default=run.info.end_time or 0)
    return StoredRun.from_mlflow(run, experiment, best_at)


def restore_hint(run_id: str, experiment: Experiment) -> str:
    """Return how a deleted run is restored, with its experiment if that is deleted, too."""
    if experiment.lifecycle_stage == "active":
        return f"is deleted; mlflow runs restore --run-id {run_id} brings it back"
    command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    return f"is deleted with its experiment {experiment.name}; {command} brings both back"


def metric_points(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return every step and value of each metric of a run, in order.

    Raises:
        TrackingError: The store cannot be read.
    """
    client = mlflow_client()
    with store_errors(f"the metrics of run {run_id} cannot be read"):
        found = client.get_run(run_id).data.metrics
        histories = {name: client.get_metric_history(run_id, name) for name in sorted(found)}
    return {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}


def clear_error(run_id: str) -> None:
    """Remove the error tag from a run that has finished.

    A process that was only suspended, such as on a laptop that slept, may have been marked KILLED meanwhile.
    If the store refuses, a warning is enough: the run has ended.
    """
    client = mlflow_client()
    try:
        if names.ERROR in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, names.ERROR)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        warn(f"run {run_id} is FINISHED, and its tag {names.ERROR} cannot be removed: {reason(error)}")
