"""Check that a training that is killed and resumed gives the same results, bit by bit, as one that is not."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .. import PACKAGE
from ..errors import ConfigError, MlprojectError
from ..tracking.liveness import find_orphans, mark_killed, read_resumable
from ..tracking.names import FINISHED
from ..tracking.store import open_store
from ..training.checkpoint import CheckpointStore, load_checkpoint
from ..training.run_folder import RunFolders
from ..utils.io import TEMP_PREFIX
from .run_digest import run_digest

_UNINTERRUPTED, _KILLED = "uninterrupted", "killed"
_OWN_OPTIONS = ("--resume", "--promote", "--dry-run")


def kill_times(count: int, start_up: float, duration: float, seed: int) -> Iterator[float]:
    """Yield when to kill each of ``count`` processes that resume one another, in seconds from its start.

    The times are uniform over the work of the whole training. Each process also gets a random part of the
    start-up time, so that kills hit the start-up as well and the training does not finish.

    Args:
        count: Number of kills.
        start_up: Seconds from the start of a process to its first step.
        duration: Seconds of an uninterrupted training, including the start-up.
        seed: Random seed.
    """
    generator = random.Random(seed)
    work = max(duration - start_up, 0)
    places = [0.0, *sorted(generator.uniform(0, work) for _ in range(count))]
    for before, place in pairwise(places):
        yield generator.uniform(0, start_up) + place - before


def inspect_after_kill(folders: RunFolders) -> tuple[str, bool]:
    """Inspect a killed training, and mark its run KILLED as ``src.store doctor`` does.

    Returns:
        Its state in words, and whether it had finished before the kill.

    Raises:
        DataError: A checkpoint cannot be loaded.
        TrackingError: The store cannot be read.
    """
    marked = sum(mark_killed(orphan.run.run_id, []) for orphan in find_orphans([]))
    temps = [path for place in (folders.logs, folders.results) for path in place.rglob(f"{TEMP_PREFIX}*")]
    epoch, steps, is_finished = 0, 0, False
    store = CheckpointStore(folders.checkpoints)
    for path in (store.previous, store.best, store.latest):
        if path.exists():
            checkpoint = load_checkpoint(path)
            epoch, steps = checkpoint["epoch"], checkpoint["steps"]
            is_finished = read_resumable(checkpoint["run_id"]).status == FINISHED
    if is_finished:
        return "the run was FINISHED already", True
    files = f"half-written files {len(temps)}; marked KILLED {marked}"
    return f"resumes at epoch {epoch + 1}, step {steps + 1}; {files}", False


@dataclass(frozen=True)
class ResumeCheck:
    """Compare a training with one that is killed and resumed.

    Attributes:
        options: Options of ``python -m src.train`` for both training runs.
        kills: Number of kills.
        seed: Random seed of the kill times.
        store: Kind of store, ``sqlite`` or ``file``.
        keep: Keep what was trained; it is also kept if the training runs differ.
    """

    options: Sequence[str]
    kills: int
    seed: int
    store: str
    keep: bool

    def run(self) -> None:
        """Train twice, and print the comparison.

        Raises:
            ConfigError: An option is not allowed here.
            MlprojectError: The training runs differ, a training failed, or it ended before the first kill.
        """
        for option in self.options:
            if option.partition("=")[0] in _OWN_OPTIONS:
                raise ConfigError(f"{option}: src.verify trains twice by itself; leave it out")
        # Not in /tmp, but on the disk that a real training uses.
        work = Path(tempfile.mkdtemp(prefix=".verify-", dir=Path.cwd()))
        is_equal = True
        try:
            with _separate_store(self.store, work):
                kills, differing = self._train_both(work)
            is_equal = not differing
        finally:
            if self.keep or not is_equal:
                print(f"kept in {work}")
            else:
                shutil.rmtree(work, ignore_errors=True)
        if differing:
            raise MlprojectError(f"not identical: {', '.join(differing)}; both training runs are in {work}")
        if kills == 0:
            raise MlprojectError(
                "the training ended before the first kill, so nothing was verified; use more --epochs"
            )
        print(f"identical after {kills} times kill -9")

    def _train_both(self, work: Path) -> tuple[int, list[str]]:
        """Return the number of kills, and which parts of the results differ."""
        uninterrupted, killed = (RunFolders(work, name) for name in (_UNINTERRUPTED, _KILLED))
        began, started = time.time(), time.monotonic()
        _train_to_end(self.options, uninterrupted)
        duration = time.monotonic() - started
        start_up = uninterrupted.config.stat().st_mtime - began  # seconds to the first step
        print(f"trained without interruption in {duration:.0f} s, of which {start_up:.0f} s to start")
        kills = self._train_killed(killed, start_up, duration)
        return kills, _compare(run_digest(uninterrupted), run_digest(killed))

    def _train_killed(self, folders: RunFolders, start_up: float, duration: float) -> int:
        """Train to the end with kills in between; return how many kills there were."""
        options = [*self.options, "--resume", "auto"]
        for number, seconds in enumerate(kill_times(self.kills, start_up, duration, self.seed), 1):
            with _training(options, folders) as process:
                try:
                    _check_end(process.wait(seconds), folders)
                    return number - 1
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            found, is_finished = inspect_after_kill(folders)
            print(f"kill {number} of {self.kills} after {seconds:.1f} s: {found}", flush=True)
            if is_finished:
                return number
        _train_to_end(options, folders)
        return self.kills


@contextlib.contextmanager
def _separate_store(kind: str, work: Path) -> Iterator[None]:
    """Use a store of its own in this process and its children."""
    before = dict(os.environ)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)
    uris = {"sqlite": f"sqlite:///{work}/mlflow.db", "file": f"{work}/mlruns"}
    os.environ["MLFLOW_TRACKING_URI"] = uris[kind]
    try:
        with contextlib.chdir(work):  # a new database stores artifacts below the working folder
            open_store()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _training(options: Sequence[str], folders: RunFolders) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a training process; kill it at the end of the block."""
    often = ("--set", "training.checkpoint_every_minutes=0.05")
    own = (f"--set=experiment.output_dir={folders.output}", f"--set=experiment.name={folders.name}")
    command = [sys.executable, "-m", f"{PACKAGE}.train", *often, *options, *own]
    with _log(folders).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _train_to_end(options: Sequence[str], folders: RunFolders) -> None:
    with _training(options, folders) as process:
        _check_end(process.wait(), folders)


def _log(folders: RunFolders) -> Path:
    return folders.output / f"{folders.name}.log"


def _check_end(status: int, folders: RunFolders) -> None:
    if status != 0:
        *_, last = ["", *_log(folders).read_text().splitlines()]
        raise MlprojectError(f"the training {folders.name} ended with exit status {status}: {last}")


def _compare(uninterrupted: dict[str, str], killed: dict[str, str]) -> list[str]:
    """Print both digests; return the parts that differ."""
    table = Table("", _UNINTERRUPTED, f"{_KILLED} and resumed")
    differing = [name for name in uninterrupted | killed if uninterrupted.get(name) != killed.get(name)]
    for name in uninterrupted | killed:
        found = f"DIFFERENT: {killed.get(name, 'missing')}" if name in differing else "identical"
        table.add_row(name, uninterrupted.get(name, "missing"), found)
    Console().print(table)
    return differing
