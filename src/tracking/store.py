"""The tracking store: the one that MLflow itself resolves, made ready once."""

import logging
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

from src.errors import StoreError
from src.utils.io import file_lock

_SQLITE = "sqlite:///"


def open_store() -> str:
    """Makes MLflow's store ready for use and returns its URI.

    A file store is allowed where, and only where, the URI is a path. A local store is opened under
    a lock, because processes that make the schema of a new one at the same moment break it.

    Raises:
        StoreError: The store cannot be reached or written.
    """
    uri = resolve_uri()
    path = local_path(uri)
    if path is not None and not uri.startswith("sqlite"):
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        if path is None:
            _touch()
        else:
            with file_lock(path.parent / f".{path.name}.lock"):
                _touch()
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        raise StoreError(
            f"{uri}: the tracking store cannot be opened: {reason(error)}. Check MLFLOW_TRACKING_URI, the "
            "permissions and the free space there"
        ) from None
    return uri


def resolve_uri() -> str:
    """The URI of the store that MLflow takes here; opens nothing."""
    # MLflow tells of every migration step and thread; a person waits for training.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints the traceback of every error that it raises as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    import mlflow

    return str(mlflow.get_tracking_uri())


def reason(error: Exception) -> str:
    """What a store's error comes down to, in one line: SQLAlchemy wraps it in statements and links."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if re.match(r"\(\w+\.\w*Error\) ", line)), lines[0])


def _touch() -> None:
    """Any read makes the schema and the default experiment where they are missing."""
    import mlflow

    mlflow.MlflowClient().search_experiments(max_results=1)


def local_path(uri: str) -> Path | None:
    """The database file or folder of a local store, None for a server or another database."""
    if uri.startswith(_SQLITE):
        return Path(unquote(uri.removeprefix(_SQLITE)).split("?")[0]).absolute()
    parsed = urlparse(uri)
    if parsed.scheme in {"", "file"}:
        return Path(unquote(parsed.path)).absolute()
    return None


def artifact_folder(artifact_uri: str) -> Path | None:
    """Where a run's artifacts lie, if that is a folder of this machine."""
    parsed = urlparse(artifact_uri)
    return Path(unquote(parsed.path)).absolute() if parsed.scheme in {"", "file"} else None
