"""One search from its beginning to its ranking: keeps its run, and starts the workers."""

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
from ..tracking.names import PLOTS, ROLE, RUNNING, SWEEP
from ..tracking.project_run import mark_project_run
from ..tracking.run import TrackedRun, tracked_run
from ..tracking.store import mlflow_client, ui_instructions
from ..utils.config import Config
from ..utils.io import atomic_write_text, file_lock
from ..utils.runtime import derive_seed
from ..utils.yaml_files import read_text
from .ranking import Ranked, Repeats, over_folds, ranking_csv, ranking_table, with_seeds
from .space import Space
from .study import RUN, Search, check_settings, open_search
from .summary import metrics, trials_shown, write_summary
from .training import end_with_parent
from .worker import Worker

_POLL = 1.0
_PARENT_SECONDS = 90.0  # for whoever has begun a search to begin its run
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
class Plan:
    """One search, as a command asks for it.

    Attributes:
        name: The search's.
        base: All settings that it does not touch.
        space: What it tries.
        trials: How many.
        storage: A database's URL; empty for a file.
        workers: How many processes here.
        until: When no further trial is begun, in seconds of the clock; None for no such time.
        seeds: How often the best settings are trained again; 0 for never.
        top: How many settings those are.
        folds: Over how many folds the best are cross-validated; 0 for none.
    """

    name: str
    base: Config
    space: Space
    trials: int
    storage: str = ""
    workers: int = 1
    until: float | None = None
    seeds: int = 0
    top: int = 3
    folds: int = 0

    @property
    def folder(self) -> Path:
        """Where the search keeps what it needs."""
        return self.base.output_dir / "sweeps" / self.name

    def join(self, seed: int) -> tuple[Search, bool]:
        """The search, and whether it was begun by this call.

        Raises:
            UserError: The store cannot be opened, or the search was begun with other settings.
        """
        search, is_new = open_search(self.name, self.storage, self.folder, self.trials, seed=seed)
        flat = {key: value for key, value in self.base.flat().items() if key not in _WHERE}
        check_settings(search, is_new, flat | {"space": self.space.to_dict()}, self.name, self.space)
        return search, is_new

    def work(self, index: int, draw: int) -> None:
        """What one worker does.

        Args:
            index: Its number in its command.
            draw: The command's, for no two workers of a search may draw the same trials.
        """
        search, _ = self.join(seed=derive_seed(self.base.training.seed, index, draw) % 2**32)
        parent = _wait_for_parent(search)
        if parent is None:
            raise TrainingError(f"the search {self.name} has no run in MLflow; start the command again")
        Worker(search, self.space, self.base, self.name, self.folder, parent, self.until).run()


def _wait_for_parent(search: Search) -> str | None:
    """The run of a search, which whoever has begun it is about to begin; None where that died before."""
    until = time.monotonic() + _PARENT_SECONDS
    while time.monotonic() < until:
        if (found := search.study.user_attrs.get(RUN)) is not None:
            return str(found)
        time.sleep(0.5)
    return None


def run_search(plan: Plan, worker_arguments: Sequence[str]) -> None:
    """Searches, ranks, and shows what came of it.

    Args:
        plan: What to do.
        worker_arguments: Those of ``python -m src.sweep`` with which each worker joins; its number follows.

    Raises:
        TrainingError: All workers have ended before the search did, or no trial came to its end.
    """
    search, is_new = plan.join(seed=plan.base.training.seed)
    known = None if is_new else _wait_for_parent(search)
    if known is not None:
        mark_project_run("resume")  # `mlflow run` has made one of its own
    with sweep_run(plan.name, known) as run:
        search.study.set_user_attr(RUN, run.run_id)
        _begin(plan, run)
        print(
            f"search {plan.name}: {plan.trials} trials, {plan.workers} workers, run {run.run_id}", flush=True
        )
        # The command that begins a search draws by its seed alone; those that join it must not draw the same.
        draw = 0 if is_new else secrets.randbits(32)
        with _workers(plan.workers, [*worker_arguments, "--draw", str(draw)]) as processes:
            _follow(plan, search, run, processes)
        if not search.best():
            raise TrainingError(f"no trial came to its end; {plan.folder}/*.log tell why")
        with file_lock(plan.folder / "ranking.lock"):  # another command here may rank the same
            _rank(plan, search, run)
        Console().print(trials_shown(search))
        print(f"look at it   {ui_instructions(run.info.experiment_id)}")


def _begin(plan: Plan, run: TrackedRun) -> None:
    params = {f"space.{key}": str(value) for key, value in plan.space.to_dict().items()}
    space, base = plan.folder / "space.yaml", plan.folder / "config.yaml"
    atomic_write_text(space, read_text(Path(plan.space.source)))
    atomic_write_text(base, plan.base.to_yaml())
    params |= {"study": plan.name, "trials": str(plan.trials)}
    record_search(run, params=params, metrics={}, step=0, files=[space, base])


@contextmanager
def _workers(count: int, arguments: Sequence[str]) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Starts the workers and waits until they leave; an error ends them, with their trainings saved."""
    command = [sys.executable, "-m", f"{PACKAGE}.sweep", *arguments, "--worker"]
    # A session of their own: Ctrl-C comes here alone, and is passed on once.
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
    """Records each trial that comes to its end, until all have."""
    recorded = -1
    while True:
        is_over = all(process.poll() is not None for process in processes)
        ended = sum(trial.state.is_finished() for trial in search.current())
        if ended != recorded:
            recorded = ended
            set_running(run)
            files = write_summary(search, plan.folder)
            record_search(run, params={}, metrics=metrics(search), step=ended, files=files)
            best = search.best()
            shown = f", best val AUC {best[0].value:.4f} (trial {best[0].number})" if best else ""
            print(f"{ended} of {plan.trials} trials ended{shown}", flush=True)
        if search.is_done:
            return
        if is_over and plan.until is not None and time.time() > plan.until:
            print(f"--timeout: {ended} of {plan.trials} trials were tried; the same command goes on")
            return
        if is_over:
            raise TrainingError(
                f"all workers have ended after {ended} of {plan.trials} trials; the same command goes on"
            )
        time.sleep(_POLL)


def _rank(plan: Plan, search: Search, run: TrackedRun) -> None:
    repeats = Repeats(search.study, plan.folder, run.run_id, plan.workers)
    best = search.best()
    if plan.seeds:
        settings = with_seeds(plan.base, best[: plan.top], plan.seeds, plan.name)
        ranked = repeats.rank(settings)
        _record(plan, run, f"{plan.seeds} other seeds", "seeds", ranked)
        best = [next(trial for trial in best if f"trial {trial.number}" == ranked[0].label)]
    if plan.folds:
        ranked = repeats.rank(over_folds(plan.base, best[0], plan.folds, plan.name))
        _record(plan, run, f"{plan.folds} folds by patient", "folds", ranked)


def _record(plan: Plan, run: TrackedRun, title: str, kind: str, ranked: list[Ranked]) -> None:
    path = plan.folder / f"ranked_by_{kind}.csv"
    atomic_write_text(path, ranking_csv(ranked))
    first = ranked[0]
    found = {f"{kind}_val_auc_mean": first.mean, f"{kind}_val_auc_std": first.spread}
    record_search(run, params={}, metrics=found, step=0, files=[path])
    Console().print(ranking_table(title, ranked))


@contextmanager
def sweep_run(name: str, run_id: str | None) -> Iterator[TrackedRun]:
    """Start the parent run of a search, or resume it.

    Args:
        name: The name of a new run.
        run_id: The search's run if it has one.

    Raises:
        StoreError: No run can be started.
    """
    with tracked_run({ROLE: SWEEP}, run_id) as run:
        if run_id is None:
            run.rename(name)
        yield run


def set_running(run: TrackedRun) -> None:
    """Set a search's run back to RUNNING after another command that worked on it has ended."""
    client = mlflow_client()
    if client.get_run(run.run_id).info.status != RUNNING:
        client.update_run(run.run_id, status=RUNNING)


def record_search(
    run: TrackedRun, *, params: Mapping[str, Any], metrics: Mapping[str, float], step: int, files: list[Path]
) -> None:
    """Log the progress of a search."""
    run.log_params(params)
    if metrics:
        run.log_metrics(metrics, step)
    for path in files:
        run.log_artifact(path, PLOTS if path.suffix == ".png" else None)
