"""The tracking store that MLflow resolves: opening it, its errors, and its client."""

import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from ..errors import MlprojectError, StoreError, TrackingError
from ..utils.console import quiet_loggers
from ..utils.io import TEMP_PREFIX, file_lock
from ..utils.masking import masked_text, masked_uri
from ..utils.project import local_folder, local_path
from ..utils.runtime import Stopped
from .sqlite_locks import wait_for_locks

MAX_TAG = 5000
"""MLflow refuses longer tag values."""

_SQLITE = "sqlite:///"

# MLflow also logs a traceback for every error that it raises.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def mlflow_client(uri: str | None = None) -> MlflowClient:
    """Return MLflow's client for the current store, or for the store at ``uri``."""
    return MlflowClient(uri)


def open_store(*, must_exist: bool = False) -> None:
    """Make MLflow's store ready for use.

    ``MLFLOW_ALLOW_FILE_STORE`` is set only if the URI is a path. A local store is opened under a lock,
    because processes that create the schema of a new database at the same time corrupt it.

    Args:
        must_exist: Create nothing, and refuse a local store that does not exist.

    Raises:
        StoreError: The store cannot be reached or written.
    """
    uri = resolve_uri()
    path = local_path(uri)
    if uri.startswith("sqlite"):
        wait_for_locks()
    if path is not None and not uri.startswith("sqlite"):
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        if path is None:
            with http_retries(2):  # report a server that is down within seconds
                _touch(create=not must_exist)
        elif must_exist:
            if not path.exists():
                raise FileNotFoundError("it does not exist yet")
            _touch(create=False)
        else:
            with file_lock(path.parent / f".{path.name}.lock"):
                if uri.startswith(_SQLITE) and not path.exists():
                    _create_schema(uri, path)
                _touch(create=True)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        raise StoreError(
            f"{shown_uri()}: the tracking store cannot be opened: {reason(error)}. Check "
            "MLFLOW_TRACKING_URI, the permissions and the free space there"
        ) from None


def _create_schema(uri: str, path: Path) -> None:
    """Create a new database in a temporary file, since a kill during the migrations damages it for good."""
    temp = path.with_name(f"{TEMP_PREFIX}{path.name}")
    for leftover in path.parent.glob(f"{temp.name}*"):
        leftover.unlink()
    mlflow_client(f"{uri.rpartition('/')[0]}/{temp.name}").search_experiments(max_results=1)
    temp.replace(path)


def _touch(*, create: bool) -> None:
    """Read an experiment; with ``create``, also create the schema and the requested experiment."""
    client = mlflow_client()
    client.search_experiments(max_results=1)
    wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    # Inside the lock: in a file store two processes can create the same experiment twice.
    if create and wanted and client.get_experiment_by_name(wanted) is None:
        client.create_experiment(wanted)


def why_not_writable() -> str | None:
    """Set and delete a tag of an experiment; return why that fails, or None."""
    client, key = mlflow_client(), f"doctor.{uuid.uuid4().hex}"
    try:
        found = client.search_experiments(max_results=1)
        if not found:
            return "it holds no experiment to try it on"
        client.set_experiment_tag(found[0].experiment_id, key, "")
        client.delete_experiment_tag(found[0].experiment_id, key)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        return reason(error)
    return None


def resolve_uri() -> str:
    """Return the URI of the store that MLflow uses here; this opens nothing."""
    return str(mlflow.get_tracking_uri())


def shown_uri() -> str:
    """Return the store's URI for messages, without a password."""
    return masked_uri(resolve_uri())


def promotion_lock() -> Path | None:
    """Return the lock file of promotions on a local store; None for a store that several hosts share."""
    path = local_path(resolve_uri())
    return None if path is None else path.parent / f".{path.name}.promote.lock"


def reason(error: Exception) -> str:
    """Return the cause of a store's error in one line; SQLAlchemy adds statements and links to it."""
    unreachable = re.match(r"API request to \S+ failed with .*\[Errno -?\d+\] ([^\"')\]]+)", str(error))
    if unreachable is not None:
        return f"the server does not answer: {unreachable[1]}"
    if (status := re.search(r"too many (\d{3}) error responses", str(error))) is not None:
        return f"the server answers with HTTP status {status[1]}"
    if "not in a valid JSON format" in str(error):
        return "something else than the tracking server answers: it sent no JSON"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line for line in lines if re.match(r"\(\w+\.\w*Error\) ", line)), lines[0])
    return masked_text(line, resolve_uri())


def error_message(error: BaseException) -> str:
    """Return why a run ended, as a message without file names that the store may keep."""
    if isinstance(error, MlflowException):
        return f"the tracking store {shown_uri()} failed: {reason(error)}; the files on disk are complete"
    if isinstance(error, MlprojectError):
        return error.public
    return str(error) if isinstance(error, Stopped) else f"{type(error).__name__}: {error}"


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn any error of the store in the block into a `TrackingError` that says ``what`` failed."""
    try:
        yield
    except MlprojectError:
        raise
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        raise TrackingError(f"{shown_uri()}: {what}: {reason(error)}") from None


@contextmanager
def http_retries(count: int) -> Iterator[None]:
    """Limit the retries of MLflow's HTTP client in the block, unless the user has set a number.

    By default it retries silently for minutes.
    """
    with _environment_defaults({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(count)}):
        yield


@contextmanager
def quiet_client() -> Iterator[None]:
    """Silence MLflow's client in the block; the outbox reports its errors once."""
    names = ("mlflow.system_metrics", "mlflow.tracking", "mlflow.utils", "urllib3")
    variables = {
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    with _environment_defaults(variables), quiet_loggers(*names):
        yield


@contextmanager
def _environment_defaults(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables in the block, except those that the user has set."""
    unset = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ |= unset
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)


def is_database(uri: str) -> bool:
    """Return whether this process reads the runs directly from a database."""
    return uri.split(":", 1)[0].split("+", 1)[0] in DATABASE_ENGINES


def is_server(uri: str) -> bool:
    """Return whether the store is a tracking server."""
    return uri.startswith(("http://", "https://"))


def ui_instructions(experiment_id: str) -> str:
    """Return the command and the address that show the runs of an experiment."""
    uri = resolve_uri()
    page = f"#/experiments/{experiment_id}/runs"
    if is_server(uri):
        return f"{masked_uri(uri)}/{page}"
    command = "mlflow ui"
    if local_folder(uri):
        command = f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {uri}"
    return f"{command}, then http://127.0.0.1:5000/{page}"
