"""The run that ``mlflow run`` created for this process, named by ``MLFLOW_RUN_ID``.

The variable may also be left over in a shell and name any other run, which is never changed.
"""

import os
from pathlib import Path

from mlflow import MlflowException

from ..errors import StoreError, UserError
from ..utils.cli import warn
from ..utils.runtime import Stopped
from .names import CONFIG_SHA256, ERROR, FAILED, KILLED, ROLE, RUN_FOLDER, RUNNING
from .store import MAX_TAG, error_message, mlflow_client, open_store, reason, shown_uri

_VARIABLE = "MLFLOW_RUN_ID"
_PROJECT = Path(__file__).parents[2]
_marked: set[str] = set()
"""Project runs that this process has tagged with a role."""


def project_run() -> str | None:
    """Return the id of the run that ``mlflow run`` created for this process, or None."""
    run_id = os.environ.get(_VARIABLE)
    return run_id if run_id and _why_not_ours(run_id) is None else None


def check_project_run() -> None:
    """Check that ``MLFLOW_RUN_ID``, if set, names a run that this process may record in.

    Raises:
        UserError: It names another run; nothing was changed.
    """
    run_id = os.environ.get(_VARIABLE)
    if run_id and (why := _why_not_ours(run_id)) is not None:
        raise UserError(
            f"{_VARIABLE} names run {run_id}, {why}, so nothing can be recorded in it; unset {_VARIABLE} and "
            "start again"
        )


def take_project_run() -> str | None:
    """Return the run that ``mlflow run`` created for this process and unset ``MLFLOW_RUN_ID``.

    Raises:
        UserError: ``MLFLOW_RUN_ID`` names another run.
    """
    check_project_run()
    return os.environ.pop(_VARIABLE, None) or None


def mark_project_run(role: str) -> None:
    """Tag the run that ``mlflow run`` created, if any, with the role of a run that is not a training run."""
    if (run_id := project_run()) is not None:
        _marked.add(run_id)
        mlflow_client().set_tag(run_id, ROLE, role)


def end_project_run(error: BaseException) -> None:
    """End the run that ``mlflow run`` created, if any: KILLED after a signal, else FAILED."""
    status = KILLED if isinstance(error, Stopped) else FAILED
    try:
        if (run_id := project_run()) is not None:
            client = mlflow_client()
            client.set_tag(run_id, ERROR, error_message(error)[:MAX_TAG])
            client.set_terminated(run_id, status)
    except Exception as failure:  # the store may be the cause
        warn(f"the run {os.environ[_VARIABLE]} could not be marked {status}: {reason(failure)}")


def _why_not_ours(run_id: str) -> str | None:
    """Return why ``mlflow run`` did not create a run for this process, None if it did."""
    try:
        open_store(must_exist=True)
        run = mlflow_client().get_run(run_id)
    except StoreError as error:
        return f"and {str(error).rstrip('.')}"
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return f"which is not in {shown_uri()}"
    tags = run.data.tags
    if run.info.lifecycle_stage != "active":
        return "which is deleted"
    if run.info.status != RUNNING:
        return f"which is {run.info.status}"
    if not _is_of_this_project(tags):
        return "which mlflow run did not make for this project"
    has_results = {ROLE, CONFIG_SHA256} & tags.keys() or run.data.metrics or RUN_FOLDER in run.data.params
    return "which holds results already" if run_id not in _marked and has_results else None


def _is_of_this_project(tags: dict[str, str]) -> bool:
    if tags.get("mlflow.source.type") != "PROJECT" or "mlflow.project.entryPoint" not in tags:
        return False
    # A local folder, as "file:///repository#subfolder" if it is in a Git repository; else a remote address.
    repository, _, below = tags.get("mlflow.source.name", "").removeprefix("file://").partition("#")
    folder = Path(repository) / below
    return not folder.is_dir() or folder.resolve() == _PROJECT.resolve()  # in a container it is elsewhere
