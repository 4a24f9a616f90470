"""After the search: the best settings again with other seeds, and over the folds of a cross-validation."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ..tracking.liveness import read_resumable
from ..training.folders import RunFolders
from ..utils.cli import warn
from ..utils.config import Config
from .training import Training, best_score, known_run

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_POLL = 0.5


@dataclass(frozen=True)
class Ranked:
    """Settings that were trained several times.

    Attributes:
        label: What they are called.
        scores: The best val AUC of each training that came to its end.
    """

    label: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the trainings; NaN where none came to its end."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def spread(self) -> float:
        """The standard deviation of a single training; NaN where there are less than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


@dataclass(frozen=True)
class Repeats:
    """Trains settings again, several times each; what was trained before is not trained again.

    Attributes:
        study: Remembers the scores.
        folder: Where settings and output of the trainings go.
        parent: The run to nest them under.
        at_once: How many train at the same time.
    """

    study: "Study"
    folder: Path
    parent: str
    at_once: int

    def rank(self, settings: dict[str, list[Config]]) -> list[Ranked]:
        """Trains all configs; the settings with the best mean come first.

        Args:
            settings: Of each settings' label the configs that are they, each with a run name of its own.
        """
        self._train([config for configs in settings.values() for config in configs])
        found = [
            Ranked(label, tuple(score for config in configs if (score := self._score(config)) is not None))
            for label, configs in settings.items()
        ]
        return sorted(found, key=lambda ranked: -ranked.mean if ranked.scores else math.inf)

    def _score(self, config: Config) -> float | None:
        score: float | None = self.study.user_attrs.get(_key(config))
        return score

    def _train(self, configs: Iterable[Config]) -> None:
        waiting = [config for config in configs if self._score(config) is None]
        running: list[tuple[Config, Training]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    config = waiting.pop(0)
                    if (training := self._start(config)) is not None:
                        running.append((config, training))
                running = [pair for pair in running if not self._settle(*pair)]
                time.sleep(_POLL)
        finally:
            for _, training in running:
                training.stop()

    def _start(self, config: Config) -> Training | None:
        """Starts a training, or goes on with it; None where it has come to its end already."""
        run_id = known_run(self.folder, str(config.experiment.name))
        training = None
        if run_id is None or read_resumable(run_id).status != "FINISHED":
            training = Training(config, self.folder, parent=self.parent, run_id=run_id)
        else:
            self._remember(config)
        return training

    def _settle(self, config: Config, training: Training) -> bool:
        """Whether a training is over; its score is kept."""
        if not training.is_over:
            return False
        reason = training.failure()
        if reason is None:
            self._remember(config)
        else:
            warn(f"{config.experiment.name} failed and does not count: {reason}")
        return True

    def _remember(self, config: Config) -> None:
        self.study.set_user_attr(
            _key(config), best_score(RunFolders(config.output_dir, str(config.experiment.name)))
        )


def _key(config: Config) -> str:
    return f"score of {config.experiment.name}"


def with_seeds(
    base: Config, trials: "Sequence[FrozenTrial]", seeds: int, name: str
) -> dict[str, list[Config]]:
    """The settings of trials with seeds that no trial had."""
    fresh = range(base.training.seed + 1, base.training.seed + 1 + seeds)
    changes = {f"seed{seed}": {"training.seed": seed} for seed in fresh}
    return {_label(trial): _varied(base, trial, changes, name) for trial in trials}


def over_folds(base: Config, trial: "FrozenTrial", folds: int, name: str) -> dict[str, list[Config]]:
    """The settings of a trial, once for each fold."""
    changes = {f"fold{fold}of{folds}": {"data.folds": folds, "data.fold": fold} for fold in range(folds)}
    return {_label(trial): _varied(base, trial, changes, name)}


def _label(trial: "FrozenTrial") -> str:
    return f"trial {trial.number}"


def _varied(
    base: Config, trial: "FrozenTrial", changes: Mapping[str, Mapping[str, int]], name: str
) -> list[Config]:
    """The settings of a trial with each of some changes, which are named by what they are called."""
    run = f"{name}_{trial.number:03d}"
    return [
        base.updated({**trial.params, **change, "experiment.name": f"{run}_{called}"})
        for called, change in changes.items()
    ]


def ranking_table(title: str, ranked: Sequence[Ranked]) -> Table:
    """The means, for a terminal."""
    table = Table("settings", "val AUC, mean", "standard deviation", "trainings", title=title)
    for one in ranked:
        table.add_row(one.label, f"{one.mean:.4f}", f"{one.spread:.4f}", str(len(one.scores)))
    return table


def ranking_csv(ranked: Sequence[Ranked]) -> str:
    """The same, in full precision."""
    lines = ["settings,mean,standard_deviation,trainings"]
    lines += [f"{one.label},{one.mean!r},{one.spread!r},{len(one.scores)}" for one in ranked]
    return "\n".join(lines) + "\n"
