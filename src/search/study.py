"""One search in a storage that several workers share: its trials, their retries, and their states.

Optuna's study stores the trials. All decisions are derived from it, by the numbers that Optuna assigns to the
trials one by one. So workers may be killed at any point, and the others come to the same decisions.
"""

import random
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ..errors import ConfigError, UserError
from ..tracking.heartbeat import Heartbeat
from ..tracking.store import reason
from ..utils.config import EARLIER, Config
from ..utils.config_yaml import flatten
from .space import Space

BEAT, RETRY_OF, RUN, REASON, SURPLUS, NAME = "beat", "retry_of", "run_id", "reason", "surplus", "run_name"
_SILENT = 5 * 60.0  # seconds after which a worker on another machine is presumed dead
_OPENINGS = 4
_UNNAMED = 60.0  # seconds between getting a trial and its first heartbeat


@dataclass(frozen=True)
class Search:
    """A study with its number of trials.

    Attributes:
        study: Optuna's study.
        trials: Number of trials.
    """

    study: Study
    trials: int

    def all(self) -> list[FrozenTrial]:
        """Return the trials that count: first attempts only, and no more than the number of trials."""
        found = [t for t in self.study.get_trials(deepcopy=False) if RETRY_OF not in t.user_attrs]
        return [t for t in found if SURPLUS not in t.user_attrs][: self.trials]

    def current(self) -> list[FrozenTrial]:
        """Return the last attempt of each trial that counts; of concurrent retries the first one counts."""
        found, retries = self.all(), dict[int, FrozenTrial]()
        for trial in self.study.get_trials(deepcopy=False):
            if RETRY_OF in trial.user_attrs:
                retries.setdefault(trial.user_attrs[RETRY_OF], trial)
        for place in range(len(found)):
            while found[place].number in retries:
                found[place] = retries[found[place].number]
        return found

    @property
    def is_done(self) -> bool:
        """Return whether every trial has ended."""
        current = self.current()
        return len(current) >= self.trials and all(trial.state.is_finished() for trial in current)

    @property
    def is_all_begun(self) -> bool:
        """Return whether all trials have been started."""
        waiting = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.WAITING]
        return len(self.all()) >= self.trials and not waiting

    def next(self) -> Trial | None:
        """Return a trial for this worker, retries first; None if there is none now."""
        self._retry_lost()
        if self.is_all_begun:
            return None
        trial = self.study.ask()
        trial.set_user_attr(BEAT, Heartbeat.now().to_json())
        if self._is_mine(trial):
            return trial
        trial.set_user_attr(SURPLUS, True)
        self.fail(trial, "others had it already")
        return None

    def _is_mine(self, trial: Trial) -> bool:
        """Return whether a new trial counts; concurrent workers may get too many."""
        of = trial.user_attrs.get(RETRY_OF)
        if of is None:
            return trial.number in {found.number for found in self.all()}
        others = self.study.get_trials(deepcopy=False)
        return min(t.number for t in others if t.user_attrs.get(RETRY_OF) == of) == trial.number

    def _retry_lost(self) -> None:
        """Enqueue the trials of dead workers again, with the same settings and the same run.

        Optuna's heartbeat and `RetryHeartbeatStaleTrialCallback` cannot replace this: only `Study.optimize`
        sends heartbeats, and only to databases, while the default storage is a file. Optuna also ends the
        lost trial before it enqueues the retry, so that a kill in between would lose the trial.
        """
        trials = self.study.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        counting = {trial.number for trial in self.current()}
        for trial in trials:
            if trial.state != TrialState.RUNNING or not _is_lost(trial):
                continue
            # First enqueue the retry, then end the lost trial, so that a kill in between loses nothing.
            if trial.number not in counting | retried:
                with suppress(UpdateFinishedTrialError):  # another worker was faster
                    # Its worker died before it could mark it.
                    self.study._storage.set_trial_user_attr(trial._trial_id, SURPLUS, True)
            elif trial.number not in retried:
                kept = {key: trial.user_attrs[key] for key in (RUN, NAME) if key in trial.user_attrs}
                self.study.enqueue_trial(trial.params, {**kept, RETRY_OF: trial.number})
            with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
                self.study.tell(trial.number, state=TrialState.FAIL)

    def renew(self, trial: Trial) -> None:
        """Renew the heartbeat of a trial.

        Raises:
            optuna.exceptions.UpdateFinishedTrialError: The heartbeat was late, and another worker has it now.
        """
        trial.set_user_attr(BEAT, Heartbeat.now().to_json())

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial as failed."""
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def wait_for(self, name: str, seconds: float) -> Any:  # noqa: ANN401 -- any value that JSON has
        """Return an attribute of the study, which another process is about to set; None if it does not."""
        until = time.monotonic() + seconds
        while (found := self.study.user_attrs.get(name)) is None and time.monotonic() < until:
            time.sleep(0.5)
        return found

    def best(self) -> list[FrozenTrial]:
        """Return the finished trials, best first."""
        done = [t for t in self.current() if t.state == TrialState.COMPLETE and t.value is not None]
        return sorted(done, key=lambda trial: (-(trial.value or 0.0), trial.number))


def _is_lost(trial: FrozenTrial) -> bool:
    beat = Heartbeat.from_json(trial.user_attrs.get(BEAT, ""))
    if beat is None:
        started = trial.datetime_start
        return started is not None and time.time() - started.timestamp() > _UNNAMED
    return not beat.is_alive() if beat.is_from_here else beat.age > _SILENT


def open_search(name: str, storage: str, folder: Path, trials: int, *, seed: int) -> tuple[Search, bool]:
    """Join a search, or start it.

    Args:
        name: The name of the search in the storage.
        storage: A database's URL; empty for a file in ``folder``.
        folder: The folder of the search.
        trials: Number of trials.
        seed: Seed of the sampler.

    Returns:
        The search, and whether this call has started it.

    Raises:
        UserError: The storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    # With groups, conditional settings are modelled among the trials that have them.
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    opened = _open_storage(storage, folder)
    try:
        study = optuna.create_study(
            storage=opened, study_name=name, direction="maximize", sampler=sampler, pruner=pruner
        )
        return Search(study, trials), True
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=opened, sampler=sampler, pruner=pruner)
        return Search(study, trials), False


def _open_storage(storage: str, folder: Path) -> BaseStorage:
    if not storage:
        folder.mkdir(parents=True, exist_ok=True)
        # A lock of the operating system, which a killed process releases, unlike Optuna's own lock.
        lock: Any = FileLock(folder / "journal.lock")
        return JournalStorage(JournalFileBackend(str(folder / "journal.log"), lock))
    for attempt in range(_OPENINGS):
        try:
            return RDBStorage(storage)
        except ImportError as error:
            raise UserError(f"--storage: {error}; a PostgreSQL needs pip install 'psycopg[binary]'") from None
        except Exception as error:  # of any database driver
            why = reason(error).partition("\n")[0]
        # If several processes create the tables at once, only one succeeds; the others then find them.
        time.sleep(random.uniform(0, attempt + 1))
    raise UserError(f"--storage: the database cannot be opened: {why}")


def check_settings(search: Search, is_new: bool, settings: dict[str, Any], name: str, space: Space) -> None:
    """Check that a search was started with the same settings.

    Raises:
        ConfigError: It was not.
    """
    # The process that has started the search is about to store them.
    before = None if is_new else search.wait_for("settings", _UNNAMED)
    if before is None:
        search.study.set_user_attr("settings", settings)
        return
    before = Config().flat() | flatten(EARLIER) | before
    if differing := [key for key in settings if settings[key] != before.get(key)]:
        shown = ", ".join(key if key == "space" else f"{key} was {before.get(key)}" for key in differing)
        raise ConfigError(
            f"the search {name} was begun with other settings ({shown}; "
            f"space {space.source}); choose another --name, or give the same ones"
        )
