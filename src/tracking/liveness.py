"""Runs that did not end properly: which are orphaned, and which can be resumed."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlflow import MlflowException

from ..errors import UserError
from ..utils.cli import span, warn
from . import names
from .heartbeat import SECONDS, Heartbeat
from .queries import search_runs
from .store import MAX_TAG, mlflow_client, reason, shown_uri, store_errors
from .stored_run import StoredRun, restore_hint
from .sync import PendingDelivery

LIMIT = 15 * 60.0
"""Seconds without a heartbeat after which a process on another machine is presumed dead."""

LIVE, UNKNOWN, NO_HEARTBEAT, UNDELIVERED, DEAD = (
    "live",
    "live or unknown",
    "no heartbeat",
    "undelivered",
    "dead",
)
_SAME = (names.MODEL, names.MODALITY, names.DATA_FINGERPRINT, names.SPLIT_FINGERPRINT, names.CONFIG_SHA256)
_SILENCE = 3 * SECONDS


@dataclass(frozen=True)
class Liveness:
    """Whether the process of a RUNNING run is alive.

    Attributes:
        run: The run.
        state: One of LIVE, UNKNOWN, NO_HEARTBEAT, UNDELIVERED and DEAD; only DEAD runs are ever changed.
        why: How that is known.
        last_alive: Last heartbeat of a run, milliseconds since the epoch; 0 without one.
    """

    run: StoredRun
    state: str
    why: str
    last_alive: int = 0


def check_running_runs(pending: Iterable[PendingDelivery]) -> list[Liveness]:
    """Check all runs in status RUNNING, of all experiments.

    Args:
        pending: The journals that were found: a process that delivers from one is alive, and one may hold
            the end of a run.

    Raises:
        TrackingError: The store cannot be read.
    """
    journals = {journal.run_id: journal for journal in pending}
    with store_errors("the runs cannot be read"):
        return [_check(run, journals) for run in search_runs(f"attributes.status = '{names.RUNNING}'")]


def find_orphans(pending: Iterable[PendingDelivery]) -> list[Liveness]:
    """Return the RUNNING runs whose process is dead; see `check_running_runs`."""
    return [found for found in check_running_runs(pending) if found.state == DEAD]


def _check(run: StoredRun, journals: Mapping[str | None, PendingDelivery]) -> Liveness:
    heartbeat = Heartbeat.from_json(run.tags.get(names.HEARTBEAT, ""))
    state, why = _state(heartbeat, journals.get(run.run_id))
    last_alive = max(run.start_time, int(heartbeat.time.timestamp() * 1000)) if heartbeat else 0
    return Liveness(run, state, why, last_alive)


def _state(heartbeat: Heartbeat | None, journal: PendingDelivery | None) -> tuple[str, str]:
    if journal is not None and journal.is_held:
        return LIVE, f"its process delivers from {journal.results}"
    if heartbeat is None:
        return NO_HEARTBEAT, "of another tool or version"
    who, ago = f"process {heartbeat.pid} on {heartbeat.host}", span(heartbeat.age)
    last = f"last heartbeat {heartbeat.time:%Y-%m-%d %H:%M:%S} UTC, {ago} ago"
    if heartbeat.is_from_here:
        if heartbeat.is_alive():
            return LIVE, f"{who}; {last}"
        why = f"{who} is gone; {last}"
    elif heartbeat.age < LIMIT:
        return UNKNOWN, f"{who}, which cannot be seen from here; {last}"
    else:
        why = f"{who} is silent; {last}"
    if journal is not None and journal.has_end:
        return UNDELIVERED, f"it has ended, which waits in {journal.results}"
    return DEAD, why


def mark_killed(run_id: str, pending: Iterable[PendingDelivery]) -> bool:
    """Mark an orphaned run KILLED; return False if it was resumed or has ended meanwhile.

    Raises:
        TrackingError: The store failed.
    """
    client = mlflow_client()
    with store_errors(f"run {run_id} cannot be marked KILLED"):
        run = client.get_run(run_id)
        now = _check(
            StoredRun.from_mlflow(run, client.get_experiment(run.info.experiment_id)),
            {journal.run_id: journal for journal in pending},
        )
        is_active = run.info.lifecycle_stage == "active"
        if run.info.status != names.RUNNING or now.state != DEAD or not is_active:
            return False
        message = f"ended without a final status (kill -9, out of memory, power loss?): {now.why}"
        client.set_tag(run_id, names.ERROR, message[:MAX_TAG])
        client.set_terminated(run_id, names.KILLED, now.last_alive)
    return True


def mark_trial(
    run_id: str, *, number: int, pruned_after: int | None = None, failed: str | None = None
) -> None:
    """Tag a trial's run with its number and why it ended early; an error of the store is only a warning.

    Args:
        run_id: The run, whose process has ended.
        number: The number of the trial.
        pruned_after: The epoch after which it was pruned.
        failed: Why it failed; a process that was killed could not record that itself.
    """
    client = mlflow_client()
    try:
        client.set_tag(run_id, names.TRIAL_NUMBER, str(number))
        if pruned_after is not None:
            client.set_tag(run_id, names.PRUNED, f"after epoch {pruned_after}: others were better by then")
        if failed is not None and client.get_run(run_id).info.status == names.RUNNING:
            client.set_tag(run_id, names.ERROR, failed)
            client.set_terminated(run_id, names.FAILED)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        warn(f"run {run_id} could not be marked as trial {number}: {reason(error)}")


def read_resumable(run_id: str, *, must_have_params: bool = True) -> StoredRun:
    """Read a training run that is to be resumed.

    Args:
        run_id: The run's id.
        must_have_params: Whether to refuse a run that has no params; such a run is not of this project, or
            was killed right after it was created.

    Raises:
        UserError: The run is not found, was deleted, or is not a training run.
        ClaimError: The store points to a folder that does not belong to the run.
        TrackingError: The store cannot be read.
    """
    client = mlflow_client()
    with store_errors(f"run {run_id} cannot be read"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"--resume {run_id}: run not found in {shown_uri()}") from None
        experiment = client.get_experiment(run.info.experiment_id)
    if run.info.lifecycle_stage != "active":
        raise UserError(f"--resume {run_id}: it {restore_hint(run_id, experiment)}")
    found = StoredRun.from_mlflow(run, experiment)
    if must_have_params and not found.is_training:
        raise UserError(
            f"--resume {run_id}: it is not a training run of this project, or ended before it began; "
            "start a new one"
        )
    found.artifact_folder()
    return found


def find_unfinished(tags: Mapping[str, str]) -> list[StoredRun]:
    """Return the unfinished runs with the same model, modality, data and settings, newest first.

    A run that was killed right after it was created has these tags, and no params yet.
    """
    same = " AND ".join(f"tags.`{name}` = '{tags[name]}'" for name in _SAME if name in tags)
    with store_errors("the runs cannot be read"):
        found = sorted(search_runs(same), key=lambda run: -run.start_time)
    unfinished = (names.RUNNING, names.KILLED, names.FAILED)
    return [run for run in found if run.status in unfinished]


def check_not_running(run: StoredRun) -> None:
    """Check that no process trains a run, not even in a copy of its folder or on another machine.

    Raises:
        UserError: A process does, or may: it was alive a moment ago and cannot be seen from here.
    """
    heartbeat = Heartbeat.from_json(run.tags.get(names.HEARTBEAT, ""))
    if run.status != names.RUNNING or heartbeat is None or heartbeat.pid == os.getpid():
        return
    who = f"process {heartbeat.pid} on {heartbeat.host}"
    if heartbeat.is_from_here and heartbeat.is_alive():
        raise UserError(f"--resume {run.run_id}: {who} trains it right now")
    if not heartbeat.is_from_here and heartbeat.age < _SILENCE:
        raise UserError(
            f"--resume {run.run_id}: {who} worked on it {span(heartbeat.age)} ago, and cannot be seen from "
            f"here; once it is silent for {span(_SILENCE)} the run can be resumed"
        )
