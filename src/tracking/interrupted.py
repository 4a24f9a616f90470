"""Runs that did not come to their end, as the store has them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError
from ..utils.cli import span, warn
from .candidates import experiment_ids, search_runs
from .finished_run import how_to_restore
from .heartbeat import SECONDS, Beat
from .names import (
    CONFIG_SHA256,
    DATA_FINGERPRINT,
    ERROR,
    HEARTBEAT,
    MODALITY,
    MODEL,
    SPLIT_FINGERPRINT,
)
from .places import run_place
from .store import reason, shown_uri, store_errors

if TYPE_CHECKING:
    from mlflow.entities import Run

_SAME = (MODEL, MODALITY, DATA_FINGERPRINT, SPLIT_FINGERPRINT, CONFIG_SHA256)
_ENDED_EARLY = ("RUNNING", "KILLED", "FAILED")
_SILENCE = 3 * SECONDS


@dataclass(frozen=True)
class KnownRun:
    """What going on with a run needs to know of it.

    Attributes:
        run_id: Its id.
        status: MLflow's status.
        name: Its folder's name.
        output_dir: Where that folder is.
        has_metrics: Whether it came to the end of an epoch.
        models: How many logged models it has.
        tags: Its tags.
    """

    run_id: str
    status: str
    name: str
    output_dir: str
    has_metrics: bool
    models: int
    tags: Mapping[str, str]

    def check_ended(self) -> None:
        """Refuses a run that a process works on, be it in a copy of the run's folder, or elsewhere.

        Raises:
            UserError: One does, or may: it was there a moment ago and cannot be seen from here.
        """
        beat = Beat.from_json(self.tags.get(HEARTBEAT, ""))
        if self.status != "RUNNING" or beat is None or beat.pid == os.getpid():
            return
        who = f"process {beat.pid} on {beat.host}"
        if beat.is_of_here and beat.lives():
            raise UserError(f"--resume {self.run_id}: {who} trains it right now")
        if not beat.is_of_here and beat.age < _SILENCE:
            raise UserError(
                f"--resume {self.run_id}: {who} worked on it {span(beat.age)} ago, and cannot be seen from "
                f"here; once it is silent for {span(_SILENCE)} the run can be resumed"
            )


def read_known(run_id: str) -> KnownRun:
    """Reads a run.

    Raises:
        UserError: There is none of this id, it was deleted, or it is no training run.
        ClaimError: The store would have its files put somewhere else than the run's own are.
        TrackingError: The store cannot be read.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors(f"run {run_id} cannot be read"):
        try:
            run = client.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"--resume {run_id}: {shown_uri()} has no such run") from None
        experiment = client.get_experiment(run.info.experiment_id)
    if run.info.lifecycle_stage != "active":
        raise UserError(f"--resume {run_id}: it {how_to_restore(run_id, experiment)}")
    if "experiment.name" not in run.data.params:
        raise UserError(
            f"--resume {run_id}: it is no training run of this project, or ended before it began; "
            "start a new one"
        )
    run_place(run_id, run.info.artifact_uri, experiment.experiment_id, experiment.artifact_location or "")
    return _known(run)


def find_unfinished(tags: Mapping[str, str]) -> list[KnownRun]:
    """The runs with the same model, modality, data and settings that did not finish, newest first."""
    import mlflow

    client = mlflow.MlflowClient()
    same = " AND ".join(f"tags.`{name}` = '{tags[name]}'" for name in _SAME if name in tags)
    with store_errors("the runs cannot be read"):
        found = search_runs(client, experiment_ids(client, None), same)
    return [
        _known(run)
        for run in sorted(found, key=lambda run: -run.info.start_time)
        if run.info.status in _ENDED_EARLY and "experiment.name" in run.data.params
    ]


def clear_error(run_id: str) -> None:
    """Remove the reason of an early end from a run that has finished after all.

    A process that was only paused, such as on a laptop that slept, may have been marked KILLED meanwhile.
    A store that refuses is a warning: the run has ended.
    """
    import mlflow

    client = mlflow.MlflowClient()
    try:
        if ERROR in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, ERROR)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        warn(f"run {run_id} is FINISHED, and its tag {ERROR} cannot be removed: {reason(error)}")


def _known(run: "Run") -> KnownRun:
    params = run.data.params
    return KnownRun(
        run.info.run_id,
        run.info.status,
        params["experiment.name"],
        params.get("experiment.output_dir", "outputs"),
        "train_loss" in run.data.metrics,
        len(run.outputs.model_outputs) if run.outputs else 0,
        dict(run.data.tags),
    )
