"""One finished run, read back: its numbers, its files, its logged model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClaimError, TrackingError
from ..utils.contained import contained
from .candidates import Candidate
from .names import ALLOWED_LEAKS, BEST_VAL_AUC, DATA_FINGERPRINT, SPLIT_FINGERPRINT
from .places import run_place
from .store import store_errors

if TYPE_CHECKING:
    from mlflow.entities import Experiment


@dataclass(frozen=True)
class FinishedRun:
    """A run as the store has it.

    Attributes:
        run_id: Its id.
        experiment: The name of its experiment.
        metrics: The last value of each metric.
        tags: Its tags.
        best_at: When ``best_val_auc`` was logged last, milliseconds since the epoch.
        model_source: Where the newest logged model is, ``models:/m-...``, None where there is none.
        artifact_uri: Where the store says that its files are.
        experiment_id: The id of its experiment.
        location: The artifact location of its experiment.
    """

    run_id: str
    experiment: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    best_at: int
    model_source: str | None
    artifact_uri: str
    experiment_id: str
    location: str

    @property
    def is_leaky(self) -> bool:
        """Whether its user has allowed a leak between splits, so that its scores may be too good."""
        return self.tags.get(ALLOWED_LEAKS, "0") != "0"

    @property
    def fingerprints(self) -> tuple[str | None, str | None]:
        """Which data and split it saw."""
        return self.tags.get(DATA_FINGERPRINT), self.tags.get(SPLIT_FINGERPRINT)

    def fetch(self, name: str, folder: Path) -> Path | None:
        """The file ``name`` among the run's artifacts, or None where it is gone, or a link.

        Args:
            name: Its path there, such as ``predictions/val.csv``.
            folder: Where to copy it from a store that is no local folder.

        Raises:
            ClaimError: The store says that they are somewhere else than the run's own are.
            TrackingError: The store failed.
        """
        local = run_place(self.run_id, self.artifact_uri, self.experiment_id, self.location)
        return _fetch(self.run_id, local, name, folder)


def fetch_of(candidates: Iterable[Candidate], name: str, folder: Path) -> Iterator[Path | None]:
    """Yield the file ``name`` of each run as `FinishedRun.fetch` does, without reading the whole run.

    None also where the store says that a run's files are somewhere else than its own are.

    Raises:
        TrackingError: The store failed.
    """
    import mlflow

    locations: dict[str, str] = {}
    for run in candidates:
        if run.experiment_id not in locations:
            with store_errors(f"the experiment of run {run.run_id} cannot be read"):
                experiment = mlflow.MlflowClient().get_experiment(run.experiment_id)
            locations[run.experiment_id] = experiment.artifact_location or ""
        try:
            local = run_place(run.run_id, run.artifact_uri, run.experiment_id, locations[run.experiment_id])
        except ClaimError:
            yield None
        else:
            yield _fetch(run.run_id, local, name, folder)


def _fetch(run_id: str, local: Path | None, name: str, folder: Path) -> Path | None:
    """Return a file of a run whose artifacts are in the folder ``local``, or at a server where it is None."""
    if local is not None:
        file = contained(local, local / name)
        return file if file is not None and file.is_file() else None
    import mlflow

    target = folder / run_id
    target.mkdir(parents=True, exist_ok=True)
    with store_errors(f"{name} of run {run_id} cannot be read"):
        there = mlflow.MlflowClient().list_artifacts(run_id, str(Path(name).parent).strip("."))
        if name not in {entry.path for entry in there}:
            return None
        found = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(target))
    return Path(found)


def read_run(run_id: str) -> FinishedRun:
    """Reads a run.

    Raises:
        TrackingError: There is no such run, or it was deleted.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors(f"run {run_id} cannot be read"):
        run = client.get_run(run_id)
        points = client.get_metric_history(run_id, BEST_VAL_AUC)
        experiment = client.get_experiment(run.info.experiment_id)
    if run.info.lifecycle_stage != "active":
        raise TrackingError(f"run {run_id} {how_to_restore(run_id, experiment)}")
    outputs = run.outputs.model_outputs if run.outputs else []
    newest = max(outputs, key=lambda output: output.step, default=None)
    return FinishedRun(
        run_id,
        experiment.name,
        dict(run.data.metrics),
        dict(run.data.tags),
        max((point.timestamp for point in points), default=run.info.end_time or 0),
        f"models:/{newest.model_id}" if newest else None,
        run.info.artifact_uri,
        experiment.experiment_id,
        experiment.artifact_location or "",
    )


def how_to_restore(run_id: str, experiment: "Experiment") -> str:
    """Return what to say of a deleted run: how it comes back, with its experiment if that is deleted too."""
    if experiment.lifecycle_stage == "active":
        return f"is deleted; mlflow runs restore --run-id {run_id} brings it back"
    number = experiment.experiment_id
    return (
        f"is deleted with its experiment {experiment.name}; mlflow experiments restore "
        f"--experiment-id {number} brings both back"
    )


def metric_points(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every value that a run has of each metric, with its step, in order.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors(f"the metrics of run {run_id} cannot be read"):
        names = client.get_run(run_id).data.metrics
        histories = {name: client.get_metric_history(run_id, name) for name in sorted(names)}
    return {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}
