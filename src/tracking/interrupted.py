"""Runs that did not come to their end, as the store has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.errors import UserError
from src.tracking.names import CONFIG_SHA256, DATA_FINGERPRINT, MODALITY, MODEL
from src.tracking.store import pages, shown_uri, store_errors

if TYPE_CHECKING:
    from mlflow.entities import Run

_SAME = (MODEL, MODALITY, DATA_FINGERPRINT, CONFIG_SHA256)
_ENDED_EARLY = ("RUNNING", "KILLED", "FAILED")


@dataclass(frozen=True)
class KnownRun:
    """What going on with a run needs to know of it.

    Attributes:
        run_id: Its id.
        status: MLflow's status.
        name: Its folder's name.
        output_dir: Where that folder is.
        tags: Its tags.
    """

    run_id: str
    status: str
    name: str
    output_dir: str
    tags: Mapping[str, str]


def read_known(run_id: str) -> KnownRun:
    """Reads a run.

    Raises:
        UserError: There is none of this id, it was deleted, or it is no training run.
        TrackingError: The store cannot be read.
    """
    import mlflow

    with store_errors(f"run {run_id} cannot be read"):
        try:
            run = mlflow.MlflowClient().get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"--resume {run_id}: {shown_uri()} has no such run") from None
    if run.info.lifecycle_stage != "active":
        raise UserError(
            f"--resume {run_id}: it is deleted; mlflow runs restore --run-id {run_id} brings it back"
        )
    if "experiment.name" not in run.data.params:
        raise UserError(f"--resume {run_id}: it is no training run of this project")
    return _known(run)


def find_unfinished(tags: Mapping[str, str]) -> list[KnownRun]:
    """The runs with the same model, modality, data and settings that did not finish, newest first."""
    import mlflow

    client = mlflow.MlflowClient()
    same = " AND ".join(f"tags.`{name}` = '{tags[name]}'" for name in _SAME)
    with store_errors("the runs cannot be read"):
        experiments = pages(lambda token: client.search_experiments(page_token=token))
        ids = [experiment.experiment_id for experiment in experiments]
        found = list(pages(lambda token: client.search_runs(ids, same, page_token=token)))
    return [
        _known(run)
        for run in sorted(found, key=lambda run: -run.info.start_time)
        if run.info.status in _ENDED_EARLY and "experiment.name" in run.data.params
    ]


def _known(run: "Run") -> KnownRun:
    params = run.data.params
    return KnownRun(
        run.info.run_id,
        run.info.status,
        params["experiment.name"],
        params.get("experiment.output_dir", "outputs"),
        dict(run.data.tags),
    )
