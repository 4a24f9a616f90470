"""The runs that a store calls RUNNING: whose process lives, and whose has ended without a word."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..utils.cli import span
from .candidates import experiment_ids, search_runs
from .heartbeat import Beat
from .held import MAX_TAG
from .names import ERROR, HEARTBEAT
from .store import store_errors
from .sync import Left

if TYPE_CHECKING:
    from mlflow.entities import Run

LIMIT = 15 * 60.0
"""Seconds without a heartbeat after which a process of another machine is presumed dead."""

LIVE, UNKNOWN, NO_HEARTBEAT, UNDELIVERED, DEAD = (
    "live",
    "live or unknown",
    "no heartbeat",
    "undelivered",
    "dead",
)


@dataclass(frozen=True)
class RunningRun:
    """A run in status RUNNING.

    Attributes:
        run_id: Its id.
        name: Its name.
        state: LIVE and so on; of these, DEAD alone is ever touched.
        why: How that is known.
        ended_at: Of a dead one: its last sign of life, milliseconds since the epoch.
    """

    run_id: str
    name: str
    state: str
    why: str
    ended_at: int = 0


def running_runs(left: Iterable[Left]) -> list[RunningRun]:
    """Looks at all runs in status RUNNING, of all experiments.

    Args:
        left: The journals at hand: whoever delivers from one lives, and an end that waits in one is known.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    client, journals = mlflow.MlflowClient(), {journal.run_id: journal for journal in left}
    with store_errors("the runs cannot be read"):
        found = search_runs(client, experiment_ids(client, None), "attributes.status = 'RUNNING'")
        return [_judge(run, journals) for run in found]


def _judge(run: "Run", journals: Mapping[str | None, Left]) -> RunningRun:
    info, beat = run.info, Beat.from_json(run.data.tags.get(HEARTBEAT, ""))
    state, why = _state(beat, journals.get(info.run_id))
    ended_at = max(info.start_time, int(beat.time.timestamp() * 1000)) if beat else 0
    return RunningRun(info.run_id, info.run_name or "", state, why, ended_at)


def _state(beat: Beat | None, journal: Left | None) -> tuple[str, str]:
    if journal is not None and journal.is_held:
        return LIVE, f"its process delivers from {journal.results}"
    if beat is None:
        return NO_HEARTBEAT, "of another tool or version"
    who, ago = f"process {beat.pid} on {beat.host}", span(beat.age)
    last = f"last heartbeat {beat.time:%Y-%m-%d %H:%M:%S} UTC, {ago} ago"
    if beat.is_of_here:
        if beat.lives():
            return LIVE, f"{who}; {last}"
        why = f"{who} is gone; {last}"
    elif beat.age < LIMIT:
        return UNKNOWN, f"{who}, which cannot be seen from here; {last}"
    else:
        why = f"{who} is silent; {last}"
    if journal is not None and journal.has_end:
        return UNDELIVERED, f"it has ended, which waits in {journal.results}"
    return DEAD, why


def mark_killed(run: RunningRun, left: Iterable[Left]) -> bool:
    """Ends a dead run, and says whether it was one still: somebody may have resumed or ended it.

    Raises:
        TrackingError: The store failed.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors(f"run {run.run_id} cannot be marked KILLED"):
        again = client.get_run(run.run_id)
        now = _judge(again, {journal.run_id: journal for journal in left})
        is_active = again.info.lifecycle_stage == "active"
        if again.info.status != "RUNNING" or now.state != DEAD or not is_active:
            return False
        client.set_tag(run.run_id, ERROR, f"ended without a word, such as by kill -9: {now.why}"[:MAX_TAG])
        client.set_terminated(run.run_id, "KILLED", now.ended_at)
    return True
