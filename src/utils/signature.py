"""Whose a folder is: a small file in it holds the id of its run."""

from pathlib import Path

from .contained import is_regular_file
from .io import atomic_write_text

_NAME = "run_id"
_MAX_ID = 256  # bytes; MLflow's ids have 32


def sign(folder: Path, run_id: str) -> None:
    """Record in a folder, which is made if it is missing, that a run's files are in it."""
    if signature(folder) != run_id:
        atomic_write_text(folder / _NAME, f"{run_id}\n")


def signature(folder: Path) -> str | None:
    """Return the id of the run that a folder says it belongs to; None if it does not say."""
    path = folder / _NAME
    if not is_regular_file(path):
        return None
    with path.open("rb") as file:
        return file.read(_MAX_ID).decode(errors="replace").strip() or None
