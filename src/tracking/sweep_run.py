"""The run that holds a search: what it tries, what came of it, and a status that is true while it lasts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils.cli import warn
from .names import ERROR, PRUNED, ROLE, SWEEP, TRIAL
from .run import TrackedRun, tracked_run
from .store import how_to_look, reason


@contextmanager
def sweep_run(name: str, run_id: str | None) -> Iterator[TrackedRun]:
    """Begins the run of a search, or goes on with it.

    Args:
        name: What to call it.
        run_id: The run that the search has already.

    Raises:
        StoreError: No run can be started.
    """
    with tracked_run({ROLE: SWEEP}, run_id) as run:
        if run_id is None:
            run.rename(name)
        yield run


def keep_running(run: TrackedRun) -> None:
    """Says again that a search goes on, where another command that worked on it was ended."""
    import mlflow

    client = mlflow.MlflowClient()
    if client.get_run(run.run_id).info.status != "RUNNING":
        client.update_run(run.run_id, status="RUNNING")


def record_search(
    run: TrackedRun, *, params: Mapping[str, Any], metrics: Mapping[str, float], step: int, files: list[Path]
) -> None:
    """Records how far a search has come."""
    run.log_params(params)
    if metrics:
        run.log_metrics(metrics, step)
    for path in files:
        run.log_artifact(path, "plots" if path.suffix == ".png" else None)


def mark_trial(
    run_id: str, *, number: int, pruned_after: int | None = None, failed: str | None = None
) -> None:
    """Says on a trial's run which one it is, and why it ended early; a store that fails is only told of.

    Args:
        run_id: The run, whose process has ended.
        number: The trial's.
        pruned_after: The epoch after which it was pruned.
        failed: Why it failed; a process that was killed could not say so itself.
    """
    import mlflow

    client = mlflow.MlflowClient()
    try:
        client.set_tag(run_id, TRIAL, str(number))
        if pruned_after is not None:
            client.set_tag(run_id, PRUNED, f"after epoch {pruned_after}: others were better by then")
        if failed is not None and client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, ERROR, failed)
            client.set_terminated(run_id, "FAILED")
    except Exception as error:  # whatever the store raises
        warn(f"run {run_id} could not be marked as trial {number}: {reason(error)}")


def where_to_look(run: TrackedRun) -> str:
    """What a person types to see it."""
    return how_to_look(run.info.experiment_id)
