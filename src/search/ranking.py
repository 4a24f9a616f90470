"""Results of a search: table and plots of its trials, and a ranking by further seeds and by folds."""

import csv
import io
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna import Study
from optuna.trial import FrozenTrial
from rich.table import Table

from ..evaluation.metric_names import VAL_AUC
from ..evaluation.plots import legend_below, new_figure
from ..tracking.liveness import read_resumable
from ..tracking.names import FINISHED
from ..training.run_folder import RunFolders
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.io import atomic_file, atomic_write_text
from ..utils.tables import escape_formula
from .study import REASON, RUN, Search
from .worker import TrialProcess, best_score, started_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STATUS = {"COMPLETE": "finished", "FAIL": "failed"}
_POLL = 0.5


@dataclass(frozen=True)
class Ranked:
    """Settings that were trained several times.

    Attributes:
        label: Their name.
        scores: The best val AUC of each finished training.
    """

    label: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over the trainings; NaN if none has finished."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def spread(self) -> float:
        """Return the standard deviation over the trainings; NaN if there are less than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


@dataclass(frozen=True)
class Repeats:
    """Repeated trainings of settings; finished ones are not repeated.

    Attributes:
        study: Optuna's study, which stores the scores.
        folder: Folder for the settings and logs.
        parent: The parent run.
        at_once: How many train at the same time.
    """

    study: Study
    folder: Path
    parent: str
    at_once: int

    def rank(self, settings: dict[str, list[Config]]) -> list[Ranked]:
        """Train all configs, and return the settings with the best mean first.

        Args:
            settings: The configs of each settings by label, each config with its own run name.
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
        running: list[tuple[Config, TrialProcess]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    config = waiting.pop(0)
                    if (process := self._start(config)) is not None:
                        running.append((config, process))
                running = [pair for pair in running if not self._collect(*pair)]
                time.sleep(_POLL)
        finally:
            for _, process in running:
                process.stop()

    def _start(self, config: Config) -> TrialProcess | None:
        """Start or resume a training; return None if it has finished already."""
        run_id = started_run(self.folder / f"{config.experiment.name}.log")
        if run_id is None or read_resumable(run_id).status != FINISHED:
            return TrialProcess(config, self.folder, parent=self.parent, run_id=run_id)
        self._store_score(config)
        return None

    def _collect(self, config: Config, process: TrialProcess) -> bool:
        """Return whether a training has ended, and store its score."""
        if not process.is_over:
            return False
        reason = process.failure()
        if reason is None:
            self._store_score(config)
        else:
            warn(f"{config.experiment.name} failed and does not count: {reason}")
        return True

    def _store_score(self, config: Config) -> None:
        self.study.set_user_attr(
            _key(config), best_score(RunFolders(config.output_dir, str(config.experiment.name)))
        )


def _key(config: Config) -> str:
    return f"score of {config.experiment.name}"


def with_seeds(base: Config, trials: Sequence[FrozenTrial], seeds: int, name: str) -> dict[str, list[Config]]:
    """Return the settings of trials with seeds that no trial has used."""
    fresh = range(base.training.seed + 1, base.training.seed + 1 + seeds)
    changes = {f"seed{seed}": {"training.seed": seed} for seed in fresh}
    return {_label(trial): _varied(base, trial, changes, name) for trial in trials}


def over_folds(base: Config, trial: FrozenTrial, folds: int, name: str) -> dict[str, list[Config]]:
    """Return the settings of a trial, once per fold."""
    changes = {f"fold{fold}of{folds}": {"data.folds": folds, "data.fold": fold} for fold in range(folds)}
    return {_label(trial): _varied(base, trial, changes, name)}


def _label(trial: FrozenTrial) -> str:
    return f"trial {trial.number}"


def _varied(
    base: Config, trial: FrozenTrial, changes: Mapping[str, Mapping[str, int]], name: str
) -> list[Config]:
    """Return the settings of a trial with each of the changes, which are given by name."""
    run = f"{name}_{trial.number:03d}"
    return [
        base.updated({**trial.params, **change, "experiment.name": f"{run}_{suffix}"})
        for suffix, change in changes.items()
    ]


def ranking_table(title: str, ranked: Sequence[Ranked]) -> Table:
    """Return a table of the means for the terminal."""
    table = Table("settings", "val AUC, mean", "standard deviation", "trainings", title=title)
    for one in ranked:
        table.add_row(one.label, f"{one.mean:.4f}", f"{one.spread:.4f}", str(len(one.scores)))
    return table


def ranking_csv(ranked: Sequence[Ranked]) -> str:
    """Return the means as CSV, in full precision."""
    lines = ["settings,mean,standard_deviation,trainings"]
    lines += [f"{one.label},{one.mean!r},{one.spread!r},{len(one.scores)}" for one in ranked]
    return "\n".join(lines) + "\n"


def search_metrics(search: Search) -> dict[str, float]:
    """Return the metrics of a search so far, for its run."""
    current, best = search.current(), search.best()
    counted = [trial.state.name for trial in current]
    found = {f"trials_{name.lower()}": float(counted.count(name)) for name in ("COMPLETE", "PRUNED", "FAIL")}
    if best:
        found |= {"best_trial": float(best[0].number), "best_trial_val_auc": best[0].value or 0.0}
    return found


def write_summary(search: Search, folder: Path) -> list[Path]:
    """Write the table of trials and the plots, and return the files."""
    table = folder / "trials.csv"
    atomic_write_text(table, _trials_table(search))
    figures = {"optimization_history": _history(search)}
    if (importance := _importance(search)) is not None:
        figures["parameter_importance"] = importance
    files = [table]
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        with atomic_file(files[-1]) as file:
            figure.savefig(file, format="png")
    return files


def _trials_table(search: Search) -> str:
    """Return the trials as CSV; Optuna's `trials_dataframe` has every attempt, and makes integers floats."""
    trials = search.current()
    keys = sorted({key for trial in trials for key in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", VAL_AUC, "epochs", "run_id", "reason", *keys])
    for trial in trials:
        state = _STATUS.get(trial.state.name, trial.state.name.lower())
        found: list[Any] = [trial.number, state, trial.value, trial.last_step]
        found += [trial.user_attrs.get(name, "") for name in (RUN, REASON)]
        found += [trial.params.get(key, "") for key in keys]
        writer.writerow([escape_formula(cell) if isinstance(cell, str) else cell for cell in found])
    return text.getvalue()


def _history(search: Search) -> "Figure":
    """Plot the val AUC of each trial, and the best so far; Optuna's plot leaves out pruned trials."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    reached = [(t.number, _reached(t), t.state.name == "PRUNED") for t in search.current()]
    for is_pruned, label, marker in ((False, "finished", "o"), (True, "pruned, as far as it came", "x")):
        points = [(number, value) for number, value, pruned in reached if value and pruned == is_pruned]
        if points:
            axes.plot(
                *zip(*points, strict=True), marker, color="#D55E00" if is_pruned else "#0072B2", label=label
            )
    if done := sorted(search.best(), key=lambda trial: trial.number):
        best = np.maximum.accumulate([trial.value or 0.0 for trial in done])
        axes.step([trial.number for trial in done], best, where="post", color="#555555", label="best so far")
    axes.set(xlabel="trial", ylabel="best val AUC", title=f"{len(search.best())} trials finished")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if any(value for _, value, _ in reached):
        legend_below(figure, axes, columns=3)
    return figure


def _reached(trial: FrozenTrial) -> float | None:
    return trial.value if trial.value is not None else max(trial.intermediate_values.values(), default=None)


def _importance(search: Search) -> "Figure | None":
    """Plot the share of variance that each setting explains (fANOVA); None if it cannot be computed."""
    if len({trial.value for trial in search.best()}) < 4:
        return None
    try:
        found = optuna.importance.get_param_importances(
            search.study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (ValueError, RuntimeError):  # settings of some trials only
        return None
    figure = new_figure(7, 1.4 + 0.35 * len(found))
    axes = figure.subplots()
    axes.barh(list(found)[::-1], list(found.values())[::-1], color="#0072B2")
    axes.set(xlabel="share of the explained variance of val AUC (fANOVA)", xlim=(0, 1))
    return figure


def best_trials_table(search: Search, count: int = 5) -> Table:
    """Return a table of the best trials for the terminal."""
    best = search.best()[:count]
    table = Table("", *(f"trial {trial.number}" for trial in best))
    table.add_row("val AUC", *(f"{trial.value:.4f}" for trial in best), end_section=True)
    for key in sorted({key for trial in best for key in trial.params}):
        table.add_row(key, *(_short(trial.params.get(key, "")) for trial in best))
    return table


def _short(value: Any) -> str:  # noqa: ANN401
    return f"{value:.3g}" if isinstance(value, float) else str(value)
