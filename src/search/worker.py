"""A worker of a search: takes a trial, trains it, tells what came of it, until there is none left."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..tracking.liveness import read_resumable
from ..tracking.names import ERROR, FAILED, FINISHED, PRUNED, RUNNING, TRIAL
from ..tracking.store import mlflow_client, reason
from ..training.defaults import resolve_defaults
from ..training.folders import RunFolders
from ..utils.cli import warn
from ..utils.config import Config
from .space import Space
from .study import NAME, RUN, Search
from .training import Training, best_score, known_run

if TYPE_CHECKING:
    from optuna import Trial

_POLL = 0.5
_RENEW = 30.0
_TAKEN = 120.0  # seconds that a training of a dead worker may take to save itself


@dataclass
class Worker:
    """Works on one search.

    Attributes:
        search: What is searched.
        space: What is tried.
        base: All other settings.
        name: The search's name, with which those of its runs start.
        folder: Where it keeps what it needs.
        parent: The run of the search.
        until: When no further trial is begun, in seconds of the clock; None for no such time.
    """

    search: Search
    space: Space
    base: Config
    name: str
    folder: Path
    parent: str
    until: float | None = None

    def run(self) -> None:
        """Works until every trial has come to its end, on whichever worker.

        Raises:
            Stopped: A signal came; the trial in hand is saved, and another worker goes on with it.
        """
        while not self.search.is_done:
            if self.until is not None and time.time() > self.until:
                return
            trial = self.search.next()
            if trial is None:
                time.sleep(4 * _POLL)  # others are at work, and may be killed
            else:
                self._try_unless_taken(trial)

    def _try_unless_taken(self, trial: "Trial") -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            self._try(trial)
        except UpdateFinishedTrialError:  # this machine has slept, or was cut off
            warn(f"trial {trial.number}: this worker was silent for so long that another has taken it over")

    def _try(self, trial: "Trial") -> None:
        try:
            config, run_id = self._prepare(trial)
        except UserError as error:  # settings that are each allowed, and not together
            self.search.fail(trial, str(error))
            return
        folders = RunFolders(config.output_dir, str(config.experiment.name))
        if run_id is not None and read_resumable(run_id).status == FINISHED:
            self._tell(trial, folders)  # it was trained, and its worker died before it could say so
            return
        training = Training(config, self.folder, parent=self.parent, run_id=run_id)
        try:
            pruned_after = self._watch(trial, training, int(resolve_defaults(config).training.epochs))
            self.search.renew(trial)
        except BaseException:  # a signal, a trial that was taken over, a store that is gone
            training.stop()
            raise
        reason = None if pruned_after else training.failure()
        if (found := training.run_id) is not None:
            mark_trial(found, number=trial.number, pruned_after=pruned_after, failed=reason)
        if pruned_after:
            self._prune(trial)
        elif reason is None:
            self._tell(trial, folders)
        else:
            self.search.fail(trial, reason)

    def _prepare(self, trial: "Trial") -> tuple[Config, str | None]:
        """The settings of a trial, and the run to go on with where a dead worker has left one here."""
        values = self.space.suggest(trial)
        attributes = trial.user_attrs
        name = attributes.get(NAME, "")
        folders = RunFolders(self.base.output_dir, name)
        if name and folders.logs.is_dir():
            self._wait_until_free(trial, folders)
        # A worker may die between the start of a run and saying which it is.
        run_id = attributes.get(RUN) or known_run(self.folder, name)
        if run_id is None or not folders.config.is_file():
            run_id, name = None, f"{self.name}_{trial.number:03d}"
        trial.set_user_attr(NAME, name)
        return self.base.updated({**values, "experiment.name": name}, f"trial {trial.number}"), run_id

    def _wait_until_free(self, trial: "Trial", folders: RunFolders) -> None:
        """Waits while the training of a dead worker saves itself."""
        until = time.monotonic() + _TAKEN
        while time.monotonic() < until:
            try:
                with folders.held():
                    return
            except UserError:
                self.search.renew(trial)
                time.sleep(_POLL)

    def _watch(self, trial: "Trial", training: Training, epochs: int) -> int | None:
        """Follows a training to its end; the epoch after which it was pruned, None where it was not."""
        renewed, is_known = time.monotonic(), False
        while True:
            is_over = training.is_over
            for epoch, score in training.news():
                if math.isfinite(score):
                    trial.report(score, epoch)
                if not is_over and epoch < epochs and trial.should_prune():
                    training.stop()
                    return epoch
            if not is_known and (run_id := training.run_id) is not None:
                trial.set_user_attr(RUN, run_id)
                is_known = True
            if is_over:
                return None
            if time.monotonic() - renewed > _RENEW:
                self.search.renew(trial)
                renewed = time.monotonic()
            time.sleep(_POLL)

    def _tell(self, trial: "Trial", folders: RunFolders) -> None:
        score = best_score(folders)
        if math.isfinite(score):
            self.search.study.tell(trial, score)
        else:
            self.search.fail(trial, "no epoch had a finite val AUC")

    def _prune(self, trial: "Trial") -> None:
        from optuna.trial import TrialState

        self.search.study.tell(trial, state=TrialState.PRUNED)


def share_cores(workers: int) -> None:
    """Gives the trainings of each worker on this machine its part of the cores."""
    from ..utils.runtime import usable_cores

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // workers)))


def mark_trial(
    run_id: str, *, number: int, pruned_after: int | None = None, failed: str | None = None
) -> None:
    """Tag a trial's run with its number and why it ended early; an error of the store is only a warning.

    Args:
        run_id: The run, whose process has ended.
        number: The number of the trial.
        pruned_after: The epoch after which it was pruned.
        failed: Why it failed; a process that was killed could not record that itself.
    """
    client = mlflow_client()
    try:
        client.set_tag(run_id, TRIAL, str(number))
        if pruned_after is not None:
            client.set_tag(run_id, PRUNED, f"after epoch {pruned_after}: others were better by then")
        if failed is not None and client.get_run(run_id).info.status == RUNNING:
            client.set_tag(run_id, ERROR, failed)
            client.set_terminated(run_id, FAILED)
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        warn(f"run {run_id} could not be marked as trial {number}: {reason(error)}")
