"""A worker of a search: it runs each trial as a training process of its own, and reports its score."""

import csv
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from optuna import Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from .. import PACKAGE
from ..errors import UserError
from ..evaluation.metric_names import VAL_AUC
from ..tracking.liveness import mark_trial, read_resumable
from ..tracking.names import FINISHED
from ..training.optim import resolve_defaults
from ..training.run_folder import RunFolders
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.io import atomic_write_text
from ..utils.runtime import usable_cores
from .space import Space
from .study import NAME, RUN, Search

_POLL = 0.5
_RENEW = 30.0
_SAVING = 120.0  # seconds that the process of a dead worker may take to save its checkpoint
_PR_SET_PDEATHSIG = 1  # of prctl.h
_RUN = "run "  # start of the log line that names the run


class TrialProcess:
    """A process of ``python -m src.train``, which saves a checkpoint and ends when its parent ends."""

    def __init__(self, config: Config, folder: Path, *, parent: str, run_id: str | None = None) -> None:
        """Start the process.

        Args:
            config: All settings, with `experiment.name`.
            folder: Folder for the settings and the log.
            parent: The parent run.
            run_id: A run to resume; None starts a new run.
        """
        name = str(config.experiment.name)
        self.folders = RunFolders(config.output_dir, name)
        self._seen_epochs = 0
        self._log = folder / f"{name}.log"
        settings = folder / f"{name}.yaml"
        atomic_write_text(settings, config.to_yaml())
        command = ["-m", f"{PACKAGE}.train", "--config", str(settings), "--parent", parent]
        resume = ["-m", f"{PACKAGE}.train", "--resume", run_id or ""]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-u", *(resume if run_id else command)],
                # A run that `mlflow run` created is the search's, not the trial's.
                env={key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches only the worker, which stops this process and waits for it.
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509
            )

    @property
    def is_over(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    @property
    def run_id(self) -> str | None:
        """Return the run, once it is known."""
        return started_run(self._log)

    def new_epochs(self) -> list[tuple[int, float]]:
        """Return the epochs since the last call, with their val AUC."""
        rows = scores(self.folders)[self._seen_epochs :]
        self._seen_epochs += len(rows)
        return rows

    def stop(self) -> None:
        """Stop the process, which saves a checkpoint, and wait for its end."""
        if not self.is_over:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def failure(self) -> str | None:
        """Return why the process failed; None if it did not."""
        status = self._process.wait()
        if status == 0:
            return None
        if status < 0:
            return f"killed by {signal.Signals(-status).name}, possibly out of memory; {self._log}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else (lines[-1] if lines else f"ended with status {status}")


@dataclass
class Worker:
    """A worker of one search.

    Attributes:
        search: The search.
        space: The search space.
        base: All other settings.
        name: The search's name, which the names of its runs start with.
        folder: The search's folder.
        parent: The parent run.
        until: When to stop starting trials, in seconds since the epoch; None for no limit.
    """

    search: Search
    space: Space
    base: Config
    name: str
    folder: Path
    parent: str
    until: float | None = None

    def run(self) -> None:
        """Run trials until every trial of the search has ended.

        Raises:
            Stopped: A signal came; the current trial is saved, and another worker resumes it.
        """
        while not self.search.is_done:
            if self.until is not None and time.time() > self.until:
                return
            trial = self.search.next()
            if trial is None:
                time.sleep(4 * _POLL)  # other workers have the rest, and may be killed
                continue
            try:
                self._train(trial)
            except UpdateFinishedTrialError:  # this machine has slept, or was offline
                warn(f"trial {trial.number}: this worker was silent for so long that another took it over")

    def _train(self, trial: Trial) -> None:
        try:
            config, run_id = self._prepare(trial)
        except UserError as error:  # settings that are valid, but not together
            self.search.fail(trial, str(error))
            return
        folders = RunFolders(config.output_dir, str(config.experiment.name))
        if run_id is not None and read_resumable(run_id).status == FINISHED:
            self._report(trial, folders)  # its worker died before it could report the score
            return
        process = TrialProcess(config, self.folder, parent=self.parent, run_id=run_id)
        try:
            pruned_after = self._watch(trial, process, int(resolve_defaults(config).training.epochs))
            self.search.renew(trial)
        except BaseException:  # a signal, a trial that another worker has, an unreachable store
            process.stop()
            raise
        reason = None if pruned_after else process.failure()
        if (found := process.run_id) is not None:
            mark_trial(found, number=trial.number, pruned_after=pruned_after, failed=reason)
        if pruned_after:
            self.search.study.tell(trial, state=TrialState.PRUNED)
        elif reason is None:
            self._report(trial, folders)
        else:
            self.search.fail(trial, reason)

    def _prepare(self, trial: Trial) -> tuple[Config, str | None]:
        """Return the settings of a trial, and the run to resume if a dead worker has left one here."""
        values = self.space.suggest(trial)
        attributes = trial.user_attrs
        name = attributes.get(NAME, "")
        folders = RunFolders(self.base.output_dir, name)
        if name and folders.logs.is_dir():
            self._wait_until_free(trial, folders)
        # A worker may die between the start of a run and storing its id.
        run_id = attributes.get(RUN) or started_run(self.folder / f"{name}.log")
        if run_id is None or not folders.config.is_file():
            run_id, name = None, f"{self.name}_{trial.number:03d}"
        trial.set_user_attr(NAME, name)
        return self.base.updated({**values, "experiment.name": name}, f"trial {trial.number}"), run_id

    def _wait_until_free(self, trial: Trial, folders: RunFolders) -> None:
        """Wait while the process of a dead worker saves its checkpoint."""
        until = time.monotonic() + _SAVING
        while time.monotonic() < until:
            try:
                with folders.lock():
                    return
            except UserError:
                self.search.renew(trial)
                time.sleep(_POLL)

    def _watch(self, trial: Trial, process: TrialProcess, epochs: int) -> int | None:
        """Wait for the end of a process; return the epoch after which it was pruned, or None."""
        renewed, is_known = time.monotonic(), False
        while True:
            is_over = process.is_over
            for epoch, score in process.new_epochs():
                if math.isfinite(score):
                    trial.report(score, epoch)
                if not is_over and epoch < epochs and trial.should_prune():
                    process.stop()
                    return epoch
            if not is_known and (run_id := process.run_id) is not None:
                trial.set_user_attr(RUN, run_id)
                is_known = True
            if is_over:
                return None
            if time.monotonic() - renewed > _RENEW:
                self.search.renew(trial)
                renewed = time.monotonic()
            time.sleep(_POLL)

    def _report(self, trial: Trial, folders: RunFolders) -> None:
        score = best_score(folders)
        if math.isfinite(score):
            self.search.study.tell(trial, score)
        else:
            self.search.fail(trial, "no epoch had a finite val AUC")


def share_cores(workers: int) -> None:
    """Limit the threads of each worker's processes to its share of the cores."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // workers)))


def started_run(log: Path) -> str | None:
    """Return the run that a process with this log has started, None if there is none."""
    if not log.exists():
        return None
    words = [line.split() for line in log.read_text(errors="replace").splitlines() if line.startswith(_RUN)]
    named = [line[1] for line in words if len(line) > 2]  # a summary line has the run's id only
    return named[-1] if named else None


def scores(folders: RunFolders) -> list[tuple[int, float]]:
    """Return the epochs of a run so far, with their val AUC."""
    try:
        text = folders.history.read_text()
    except FileNotFoundError:
        return []
    return [(int(row["epoch"]), float(row[VAL_AUC])) for row in csv.DictReader(text.splitlines())]


def best_score(folders: RunFolders) -> float:
    """Return the best val AUC of a run; NaN if no epoch has one."""
    return max((score for _, score in scores(folders) if math.isfinite(score)), default=math.nan)


_PRCTL: Callable[..., int] | None = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent(parent: int) -> None:
    """Let the kernel send this new process SIGTERM when its parent dies, on Linux.

    On other systems a trial whose worker is killed trains to its end, and the next worker waits for it.

    Args:
        parent: The process that starts this one.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)
