"""The tracking store: the one that MLflow itself resolves, made ready once."""

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import MlprojectError, StoreError, TrackingError
from ..utils.io import TEMP_PREFIX, file_lock
from ..utils.masking import masked_text, masked_uri
from ..utils.silence import quiet_loggers
from .locked import wait_for_locks

_SQLITE = "sqlite:///"


def open_store(*, must_exist: bool = False) -> None:
    """Makes MLflow's store ready for use.

    A file store is allowed where, and only where, the URI is a path. A local store is opened under
    a lock, because processes that make the schema of a new one at the same moment break it.

    Args:
        must_exist: Look only: make nothing, and refuse a local store that is not there.

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
            with http_retries(2):  # a server that is down is told within seconds
                _touch(make=not must_exist)
        elif must_exist:
            if not path.exists():
                raise FileNotFoundError("there is none yet, so it holds no run")
            _touch(make=False)
        else:
            with file_lock(path.parent / f".{path.name}.lock"):
                if uri.startswith(_SQLITE) and not path.exists():
                    _make_schema(uri, path)
                _touch(make=True)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        raise StoreError(
            f"{shown_uri()}: the tracking store cannot be opened: {reason(error)}. Check "
            "MLFLOW_TRACKING_URI, the permissions and the free space there"
        ) from None


def why_not_writable() -> str | None:
    """Sets a tag of an experiment and takes it away again; says why that fails, None where it does not."""
    import mlflow

    client, key = mlflow.MlflowClient(), f"doctor.{uuid.uuid4().hex}"
    try:
        found = client.search_experiments(max_results=1)
        if not found:
            return "it holds no experiment to try it on"
        experiment = found[0]
        client.set_experiment_tag(experiment.experiment_id, key, "")
        client.delete_experiment_tag(experiment.experiment_id, key)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        return reason(error)
    return None


def resolve_uri() -> str:
    """The URI of the store that MLflow takes here; opens nothing."""
    # MLflow tells of every migration step and thread; a person waits for training.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints the traceback of every error that it raises as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    import mlflow

    return str(mlflow.get_tracking_uri())


def shown_uri() -> str:
    """The store's URI for messages."""
    return masked_uri(resolve_uri())


def promotion_lock() -> Path | None:
    """The file that promoters of a local store lock; None for a store that several hosts share."""
    path = local_path(resolve_uri())
    return None if path is None else path.parent / f".{path.name}.promote.lock"


def reason(error: Exception) -> str:
    """What a store's error comes down to, in one line: SQLAlchemy wraps it in statements and links."""
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


def _make_schema(uri: str, path: Path) -> None:
    """Makes a new database beside ``path`` and renames it once it is whole.

    A process killed among the migrations leaves a file that no later start can mend.
    """
    import mlflow

    temp = path.with_name(f"{TEMP_PREFIX}{path.name}")
    for left in path.parent.glob(f"{temp.name}*"):
        left.unlink()
    mlflow.MlflowClient(f"{uri.rpartition('/')[0]}/{temp.name}").search_experiments(max_results=1)
    temp.replace(path)


@contextmanager
def http_retries(count: int) -> Iterator[None]:
    """Within the block MLflow's HTTP client tries ``count`` times more, unless the user has set a number.

    Its own patience is minutes long, and silent.
    """
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(count))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keeps MLflow's client from telling again what the outbox tells once, and from its own farewell."""
    names = ("mlflow.system_metrics", "mlflow.tracking", "mlflow.utils", "urllib3")
    variables = {
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ |= ours
    try:
        with quiet_loggers(*names):
            yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _touch(*, make: bool) -> None:
    """Reads an experiment; with ``make``, makes the schema and the one that is asked for where missing."""
    import mlflow

    client = mlflow.MlflowClient()
    client.search_experiments(max_results=1)
    wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    # Inside the lock: a file store lets two processes make the same experiment twice.
    if make and wanted and client.get_experiment_by_name(wanted) is None:
        client.create_experiment(wanted)


def is_database(uri: str) -> bool:
    """Whether runs are rows of a database that this process opens itself."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    return uri.split(":", 1)[0].split("+", 1)[0] in DATABASE_ENGINES


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Whatever the store raises in the block becomes a `TrackingError` that says ``what`` failed."""
    try:
        yield
    except MlprojectError:
        raise
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        raise TrackingError(f"{shown_uri()}: {what}: {reason(error)}") from None


def pages(page: Callable[[str | None], Any]) -> Iterator[Any]:
    """All items of one of MLflow's paged answers, which stop silently at the first page.

    Args:
        page: Gets the page of a token, None for the first.
    """
    token = None
    while True:
        items = page(token)
        yield from items
        token = items.token
        if not token:
            return


def is_server(uri: str) -> bool:
    """Whether runs are kept by a server."""
    return uri.startswith(("http://", "https://"))


def local_path(uri: str) -> Path | None:
    """The database file or folder of a local store, None for a server or another database."""
    if uri.startswith(_SQLITE):
        return Path(unquote(uri.removeprefix(_SQLITE)).split("?")[0]).absolute()
    return local_folder(uri)


def local_folder(uri: str) -> Path | None:
    """The folder that a plain path or ``file:`` URI names, None for any other."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(uri)).absolute() if is_local_uri(uri) else None


def how_to_look(experiment_id: str) -> str:
    """What to type, and where to go, to see the runs of an experiment."""
    uri = resolve_uri()
    page = f"#/experiments/{experiment_id}/runs"
    if is_server(uri):
        return f"{masked_uri(uri)}/{page}"
    store = (
        f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {uri}"
        if local_folder(uri)
        else "mlflow ui"
    )
    return f"{store}, then http://127.0.0.1:5000/{page}"
