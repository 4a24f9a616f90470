"""MLflow's SQLite store, ready made: its migrations take seconds, a copy takes none."""

import contextlib
import functools
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from src.tracking.store import open_store


@functools.cache
def _empty() -> tempfile.TemporaryDirectory[str]:
    """The folder of an empty store as MLflow makes it; deleted with this process."""
    folder = tempfile.TemporaryDirectory(prefix="store-")
    with contextlib.chdir(folder.name), pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_store()
    return folder


def place_store(path: Path, artifacts: str = "") -> Path:
    """Put an empty store at ``path``.

    Args:
        path: Of the SQLite file.
        artifacts: Where the default experiment keeps its artifacts, ``mlruns/0`` next to the file if "".

    Returns:
        ``path``.
    """
    shutil.copy(Path(_empty().name) / "mlflow.db", path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ?", (artifacts or f"{path.parent}/mlruns/0",)
        )
    return path
