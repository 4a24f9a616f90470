"""One search from start to ranking: its MLflow run, its worker processes, and its results."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import PACKAGE
from ..errors import TrainingError
from ..tracking import project_run_errors
from ..tracking.names import CONFIG_FILE, PLOTS, ROLE, SWEEP
from ..tracking.project_run import check_project_run, mark_project_run
from ..tracking.run import TrackedRun, tracked_run
from ..tracking.store import open_store, ui_instructions
from ..utils.config import Config
from ..utils.config_yaml import read_config_text
from ..utils.io import atomic_write_text, file_lock
from ..utils.runtime import derive_seed
from .ranking import (
    Ranked,
    Repeats,
    best_trials_table,
    over_folds,
    ranking_csv,
    ranking_table,
    search_metrics,
    with_seeds,
    write_summary,
)
from .space import Space
from .study import RUN, Search, check_settings, open_search
from .worker import Worker, end_with_parent, share_cores

_POLL = 1.0
_PARENT_SECONDS = 90.0  # that the first command may take to start the search's run
_WHERE = (
    "data.root_dir",
    "data.cache_dir",
    "data.cache_gb",
    "data.device_cache",
    "training.device",
    "training.compile",
    "experiment.output_dir",
)
"""Settings that may differ between the machines of one search."""


@dataclass(frozen=True)
class SweepRequest:
    """What a user asks for: one search for each model and modality, and the options that all of them share.

    Attributes:
        name: The start of the searches' names.
        config_file: A settings file; None for the defaults.
        changes: The settings of each search that override the file, by dotted key.
        space: The file of the search space.
        trials: Number of trials.
        storage: A database's URL; empty for a file.
        workers: Number of worker processes on this machine.
        until: When to stop starting trials, in seconds since the epoch; None for no limit.
        seeds: Number of further seeds that the best settings are trained with.
        top: Number of the best settings.
        folds: Number of folds that the best settings are cross-validated over; 0 for none.
    """

    name: str
    config_file: str | None
    changes: Sequence[Mapping[str, Any]]
    space: Path
    trials: int
    storage: str
    workers: int
    until: float | None
    seeds: int
    top: int
    folds: int

    def plans(self) -> "list[Plan]":
        """Return one search for each model and modality, in the given order.

        Raises:
            ConfigError: The search space or a setting is refused.
        """
        space, plans = Space.from_file(self.space), []
        for changes in self.changes:
            base = Config.from_file(self.config_file, {**changes, "experiment.name": None})  # a trial's own
            name = f"{self.name}_{base.model.name}_{'-'.join(base.data.modalities)}"
            plans.append(Plan(name, base, space, self))
        return plans


@dataclass(frozen=True)
class Plan:
    """One search.

    Attributes:
        name: The name of the search.
        base: All settings that are not searched.
        space: The search space.
        options: The options of the command.
    """

    name: str
    base: Config
    space: Space
    options: SweepRequest

    @property
    def folder(self) -> Path:
        """Return the folder of the search."""
        return self.base.output_dir / "sweeps" / self.name

    def join(self, seed: int) -> tuple[Search, bool]:
        """Return the search, and whether this call has started it.

        Raises:
            UserError: The storage cannot be opened, or the search was started with other settings.
        """
        search, is_new = open_search(
            self.name, self.options.storage, self.folder, self.options.trials, seed=seed
        )
        flat = {key: value for key, value in self.base.flat().items() if key not in _WHERE}
        check_settings(search, is_new, flat | {"space": self.space.to_dict()}, self.name, self.space)
        return search, is_new


def run_worker(request: SweepRequest, place: int, index: int, draw: int) -> None:
    """Run one worker of one search.

    Args:
        request: What to search.
        place: The place of the search in the request.
        index: The worker's number in its command.
        draw: A number of the command, so that no two workers of a search sample the same trials.
    """
    open_store()
    plan = request.plans()[place]
    search, _ = plan.join(seed=derive_seed(plan.base.training.seed, index, draw) % 2**32)
    parent = search.wait_for(RUN, _PARENT_SECONDS)
    if parent is None:
        raise TrainingError(f"the search {plan.name} has no run in MLflow; start the command again")
    Worker(search, plan.space, plan.base, plan.name, plan.folder, parent, plan.options.until).run()


def run_sweep(request: SweepRequest, arguments: Sequence[str]) -> None:
    """Run one search after the other.

    Args:
        request: What to search.
        arguments: The arguments of ``python -m src.sweep``, which its workers get, too.

    Raises:
        ConfigError: The search space or a setting is refused.
        TrainingError: All workers have ended before a search, or no trial has finished.
    """
    with project_run_errors():
        check_project_run()
        plans = request.plans()
        for plan in plans:
            plan.space.check(plan.base)
        open_store()
    share_cores(request.workers)
    until = "" if request.until is None else str(request.until)
    for place, plan in enumerate(plans):
        _search(plan, [*arguments, "--until", until, "--plan", str(place)])


def _search(plan: Plan, worker_arguments: Sequence[str]) -> None:
    """Run a search, rank its best settings, and print the results."""
    search, is_new = plan.join(seed=plan.base.training.seed)
    known = None if is_new else search.wait_for(RUN, _PARENT_SECONDS)
    if known is not None:
        mark_project_run("resume")  # `mlflow run` has created another run
    with tracked_run({ROLE: SWEEP}, known) as run:
        if known is None:
            run.rename(plan.name)
        search.study.set_user_attr(RUN, run.run_id)
        _begin(plan, run)
        trials, workers = plan.options.trials, plan.options.workers
        print(f"search {plan.name}: {trials} trials, {workers} workers, run {run.run_id}", flush=True)
        # The first command samples by its seed alone; commands that join must sample other trials.
        draw = 0 if is_new else secrets.randbits(32)
        with _workers(workers, [*worker_arguments, "--draw", str(draw)]) as processes:
            _follow(plan, search, run, processes)
        if not search.best():
            raise TrainingError(f"no trial has finished; see {plan.folder}/*.log")
        with file_lock(plan.folder / "ranking.lock"):  # another command on this machine may rank, too
            _rank(plan, search, run)
        Console().print(best_trials_table(search))
        print(f"look at it   {ui_instructions(run.info.experiment_id)}")


def _begin(plan: Plan, run: TrackedRun) -> None:
    params = {f"space.{key}": str(value) for key, value in plan.space.to_dict().items()}
    space, base = plan.folder / "space.yaml", plan.folder / CONFIG_FILE
    atomic_write_text(space, read_config_text(Path(plan.space.source)))
    atomic_write_text(base, plan.base.to_yaml())
    run.log_params({**params, "study": plan.name, "trials": str(plan.options.trials)})
    _log_files(run, [space, base])


@contextmanager
def _workers(count: int, arguments: Sequence[str]) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Start the workers, and wait for their end; after an error, stop them."""
    command = [sys.executable, "-m", f"{PACKAGE}.sweep", *arguments, "--worker"]
    # In a session of their own, so that Ctrl-C reaches only this process, which passes it on once.
    processes = [
        subprocess.Popen(
            [*command, str(index)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509
        )
        for index in range(count)
    ]
    try:
        yield processes
    except BaseException:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        raise
    finally:
        for process in processes:
            process.wait()


def _follow(plan: Plan, search: Search, run: TrackedRun, processes: "list[subprocess.Popen[bytes]]") -> None:
    """Log the progress of the search until all trials have ended."""
    recorded, trials, until = -1, plan.options.trials, plan.options.until
    while True:
        is_over = all(process.poll() is not None for process in processes)
        ended = sum(trial.state.is_finished() for trial in search.current())
        if ended != recorded:
            recorded = ended
            run.set_running()
            files = write_summary(search, plan.folder)
            run.log_metrics(search_metrics(search), step=ended)
            _log_files(run, files)
            shown = "".join(f", best val AUC {t.value:.4f} (trial {t.number})" for t in search.best()[:1])
            print(f"{ended} of {trials} trials ended{shown}", flush=True)
        if search.is_done:
            return
        again = "the same command continues the search"
        if is_over and until is not None and time.time() > until:
            print(f"--timeout: {ended} of {trials} trials tried; {again}")
            return
        if is_over:
            raise TrainingError(f"all workers have ended after {ended} of {trials} trials; {again}")
        time.sleep(_POLL)


def _rank(plan: Plan, search: Search, run: TrackedRun) -> None:
    repeats = Repeats(search.study, plan.folder, run.run_id, plan.options.workers)
    best, options = search.best(), plan.options
    if options.seeds:
        settings = with_seeds(plan.base, best[: options.top], options.seeds, plan.name)
        ranked = repeats.rank(settings)
        _record(plan, run, f"{options.seeds} other seeds", "seeds", ranked)
        best = [next(trial for trial in best if f"trial {trial.number}" == ranked[0].label)]
    if options.folds:
        ranked = repeats.rank(over_folds(plan.base, best[0], options.folds, plan.name))
        _record(plan, run, f"{options.folds} folds by patient", "folds", ranked)


def _record(plan: Plan, run: TrackedRun, title: str, kind: str, ranked: list[Ranked]) -> None:
    path = plan.folder / f"ranked_by_{kind}.csv"
    atomic_write_text(path, ranking_csv(ranked))
    best = ranked[0]
    run.log_metrics({f"{kind}_val_auc_mean": best.mean, f"{kind}_val_auc_std": best.spread}, step=0)
    _log_files(run, [path])
    Console().print(ranking_table(title, ranked))


def _log_files(run: TrackedRun, files: Sequence[Path]) -> None:
    for path in files:
        run.log_artifact(path, PLOTS if path.suffix == ".png" else None)
