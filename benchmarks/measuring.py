"""What all benchmarks share: processes of their own, numbers with their spread, tables, files."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from src.utils.io import atomic_write_text

ROOT = Path(__file__).parent.parent


def python(folder: Path, *arguments: str) -> str:
    """Run Python with this project in a folder; return what it printed.

    Raises:
        SystemExit: It failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    return done.stdout


def environment() -> dict[str, str]:
    """Ours, without settings of MLflow, so that a folder has a store of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, and from where to where."""
    shown = (statistics.median(values), min(values), max(values))
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*shown, d=digits)


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console(width=150).print(table)


def keep(path: Path | None, measured: Mapping[str, Any]) -> None:
    """Write all that was measured as JSON, where that is wanted."""
    if path is not None:
        atomic_write_text(path, json.dumps(measured, indent=1))
