"""One training as a process of its own, watched from outside by the table of epochs that it writes."""

import csv
import ctypes
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import PACKAGE
from ..evaluation.auc import is_better
from ..training.run_folder import RunFolders
from ..utils.config import Config
from ..utils.io import atomic_write_text

_PR_SET_PDEATHSIG = 1  # of prctl.h
_RUN = "run "  # how the line starts in which a training names its run


class Training:
    """``python -m src.train`` in a process that ends, saved, with the one that started it."""

    def __init__(self, config: Config, folder: Path, *, parent: str, run_id: str | None = None) -> None:
        """Starts it.

        Args:
            config: All settings; `experiment.name` is set.
            folder: Where its settings and what it prints go.
            parent: The run to nest it under.
            run_id: The run to go on with; None starts one.
        """
        name = str(config.experiment.name)
        self.folders = RunFolders(config.output_dir, name)
        self._told = 0
        self._said = folder / f"{name}.log"
        settings = folder / f"{name}.yaml"
        atomic_write_text(settings, config.to_yaml())
        command = ["-m", f"{PACKAGE}.train", "--config", str(settings), "--parent", parent]
        resume = ["-m", f"{PACKAGE}.train", "--resume", run_id or ""]
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-u", *(resume if run_id else command)],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                # Ctrl-C reaches the worker, which ends its training and waits for it.
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509
            )

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def run_id(self) -> str | None:
        """The run, once it is known."""
        return _named_run(self._said)

    def news(self) -> list[tuple[int, float]]:
        """Epochs that came since the last call, each with its val AUC."""
        rows = scores(self.folders)[self._told :]
        self._told += len(rows)
        return rows

    def stop(self) -> None:
        """Ends it, saved."""
        if not self.is_over:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def failure(self) -> str | None:
        """Why it ended before its time; None where it did not."""
        status = self._process.wait()
        if status == 0:
            return None
        if status < 0:
            return f"killed by {signal.Signals(-status).name}, for lack of memory perhaps; {self._said}"
        lines = self._said.read_text(errors="replace").strip().splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else (lines[-1] if lines else f"ended with status {status}")


def known_run(folder: Path, name: str) -> str | None:
    """The run that a training of this name has begun, None where it has not."""
    return _named_run(folder / f"{name}.log")


def _named_run(said: Path) -> str | None:
    if not said.exists():
        return None
    words = [line.split() for line in said.read_text(errors="replace").splitlines() if line.startswith(_RUN)]
    named = [line[1] for line in words if len(line) > 2]  # the summary names it as well, alone
    return named[-1] if named else None


def scores(folders: RunFolders) -> list[tuple[int, float]]:
    """The epochs of a run with their val AUC, as far as it has come."""
    try:
        text = folders.history.read_text()
    except FileNotFoundError:
        return []
    return [(int(row["epoch"]), float(row["val_auc"])) for row in csv.DictReader(text.splitlines())]


def best_score(folders: RunFolders) -> float:
    """The best val AUC of a run; NaN where no epoch had one."""
    best: float | None = None
    for _, score in scores(folders):
        best = score if is_better(score, best) else best
    return math.nan if best is None else best


def _environment() -> dict[str, str]:
    # A run that `mlflow run` made for the search is not the training's.
    return {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}


_PRCTL: Callable[..., int] | None = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent(parent: int) -> None:
    """In a new process: lets the kernel send it SIGTERM when its parent dies, however that does; on Linux.

    Elsewhere a training whose worker is killed trains to its end, and the next worker waits for it.

    Args:
        parent: The process that starts it.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before this was asked for
            os.kill(os.getpid(), signal.SIGTERM)
