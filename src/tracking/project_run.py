"""The run that ``mlflow run`` makes for a process of this project, named by ``MLFLOW_RUN_ID``.

The variable may also be left over in a shell and name any other run, which is never touched.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StoreError, UserError
from ..utils.cli import warn
from ..utils.runtime import Stopped
from .held import MAX_TAG
from .names import CONFIG_SHA256, ERROR, ROLE
from .run import message_of
from .store import open_store, reason, shown_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

_VARIABLE = "MLFLOW_RUN_ID"
_PROJECT = Path(__file__).parents[2]
_marked: set[str] = set()
"""Project runs that this process has given a role."""


def project_run() -> str | None:
    """Return the id of the run that ``mlflow run`` made for this process, None if there is none."""
    run_id = os.environ.get(_VARIABLE)
    return run_id if run_id and _obstacle(run_id) is None else None


def check_project_run() -> None:
    """Check that ``MLFLOW_RUN_ID``, if set, names a run that may record what this process does.

    Raises:
        UserError: It names another run; nothing was changed.
    """
    run_id = os.environ.get(_VARIABLE)
    if run_id and (why := _obstacle(run_id)) is not None:
        raise UserError(
            f"{_VARIABLE} names run {run_id}, {why}, so nothing can be recorded in it; unset {_VARIABLE} and "
            "start again"
        )


def take_project_run() -> str | None:
    """Return the run that ``mlflow run`` made for this process, to record in; no other process gets it.

    Raises:
        UserError: ``MLFLOW_RUN_ID`` names another run.
    """
    check_project_run()
    return os.environ.pop(_VARIABLE, None) or None


def mark_project_run(role: str) -> None:
    """Tag the run that ``mlflow run`` made, if there is one, as not being a training."""
    if (run_id := project_run()) is not None:
        import mlflow

        _marked.add(run_id)
        mlflow.MlflowClient().set_tag(run_id, ROLE, role)


@contextmanager
def project_run_told() -> Iterator[None]:
    """Record on the run that ``mlflow run`` made, if there is one, why the block ended before training."""
    try:
        yield
    except Stopped as stopped:
        _end_project_run("KILLED", stopped)
        raise
    except BaseException as error:
        _end_project_run("FAILED", error)
        raise


def _end_project_run(status: str, why: BaseException) -> None:
    if not os.environ.get(_VARIABLE):
        return
    import mlflow

    try:
        if (run_id := project_run()) is not None:
            client = mlflow.MlflowClient()
            client.set_tag(run_id, ERROR, message_of(why)[:MAX_TAG])
            client.set_terminated(run_id, status)
    except Exception as error:  # the store may be what is wrong
        warn(f"the run {os.environ[_VARIABLE]} could not be marked {status}: {reason(error)}")


def _obstacle(run_id: str) -> str | None:
    """Return why a run is not one that ``mlflow run`` made for this process, None if it is."""
    import mlflow

    try:
        open_store(must_exist=True)
        run = mlflow.MlflowClient().get_run(run_id)
    except StoreError as error:
        return f"and {str(error).rstrip('.')}"
    except mlflow.MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return f"which is not in {shown_uri()}"
    if run.info.lifecycle_stage != "active":
        return "which is deleted"
    if run.info.status != "RUNNING":
        return f"which is {run.info.status}"
    if not _is_of_this_project(run.data.tags):
        return "which mlflow run did not make for this project"
    return "which holds results already" if run_id not in _marked and _holds_results(run) else None


def _is_of_this_project(tags: dict[str, str]) -> bool:
    if tags.get("mlflow.source.type") != "PROJECT" or "mlflow.project.entryPoint" not in tags:
        return False
    # A local folder, as "file:///repository#subfolder" if it is in a Git repository; else a remote address.
    repository, _, below = tags.get("mlflow.source.name", "").removeprefix("file://").partition("#")
    folder = Path(repository) / below
    return not folder.is_dir() or folder.resolve() == _PROJECT.resolve()  # in a container it is elsewhere


def _holds_results(run: "Run") -> bool:
    named = {ROLE, CONFIG_SHA256} & run.data.tags.keys()
    return bool(named or run.data.metrics or "experiment.name" in run.data.params)
