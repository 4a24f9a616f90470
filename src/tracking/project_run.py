"""The run that ``mlflow run`` makes for a process of ours, before there is one of our own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from src.tracking.held import MAX_TAG
from src.tracking.names import ERROR, ROLE
from src.tracking.run import message_of
from src.tracking.store import open_store, reason
from src.utils.cli import warn
from src.utils.runtime import Stopped


def is_project_run() -> bool:
    """Whether ``mlflow run`` started this process and made a run for it."""
    return "MLFLOW_RUN_ID" in os.environ


def mark_project_run(role: str) -> None:
    """Says on the run that ``mlflow run`` made, where there is one, that it trains nothing."""
    if is_project_run():
        import mlflow

        mlflow.MlflowClient().set_tag(os.environ["MLFLOW_RUN_ID"], ROLE, role)


@contextmanager
def project_run_told() -> Iterator[None]:
    """Where ``mlflow run`` made a run for this process: tells it why the block ended before training."""
    try:
        yield
    except Stopped as stopped:
        _end_project_run("KILLED", stopped)
        raise
    except BaseException as error:
        _end_project_run("FAILED", error)
        raise


def _end_project_run(status: str, why: BaseException) -> None:
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None:
        return
    import mlflow

    try:
        open_store()
        client = mlflow.MlflowClient()
        client.set_tag(run_id, ERROR, message_of(why)[:MAX_TAG])
        client.set_terminated(run_id, status)
    except Exception as error:  # the store may be what is wrong
        warn(f"the run {run_id} could not be marked {status}: {reason(error)}")
