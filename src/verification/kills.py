"""Kill trainings at random times and inspect what is left."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..tracking.liveness import find_orphans, mark_killed, read_resumable
from ..training.checkpoint import CheckpointStore, load_checkpoint
from ..training.run_folder import RunFolders
from ..utils.io import TEMP_PREFIX


@dataclass(frozen=True)
class KilledRun:
    """The state of a killed training.

    Attributes:
        position: Epoch and step at which it would resume.
        half_written: Number of files that it was writing.
        marked: Number of orphaned RUNNING runs that are marked KILLED now.
        is_finished: Whether it had finished before the kill.
    """

    position: str
    half_written: int
    marked: int
    is_finished: bool

    def __str__(self) -> str:
        if self.is_finished:
            return "the run was FINISHED already"
        files = f"half-written files {self.half_written}; marked KILLED {self.marked}"
        return f"resumes at {self.position}; {files}"


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


def inspect_after_kill(folders: RunFolders) -> KilledRun:
    """Inspect a killed training, and mark its run KILLED as ``src.store doctor`` does.

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
            is_finished = read_resumable(checkpoint["run_id"]).status == "FINISHED"
    return KilledRun(f"epoch {epoch + 1}, step {steps + 1}", len(temps), marked, is_finished)
