"""Trainings that are killed at random moments, and what is found then."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..tracking.liveness import find_orphans, mark_killed, read_resumable
from ..training.checkpoint import CheckpointStore, load_checkpoint
from ..training.run_folder import RunFolders
from ..utils.io import TEMP_PREFIX


@dataclass(frozen=True)
class Found:
    """What a killed training has left.

    Attributes:
        place: Where it would go on.
        half_written: How many files it was in the midst of writing.
        marked: How many runs were RUNNING, with no process, and are KILLED now.
        is_finished: Whether it had come to its end all the same.
    """

    place: str
    half_written: int
    marked: int
    is_finished: bool

    def __str__(self) -> str:
        if self.is_finished:
            return "the run was FINISHED already"
        return f"goes on at {self.place}; half-written files {self.half_written}; marked KILLED {self.marked}"


def moments(count: int, start_up: float, duration: float, seed: int) -> Iterator[float]:
    """When to kill each of ``count`` processes that go on one from another, in seconds from its start.

    The moments are uniform over the work of the whole training, and each process gets a random part
    of the time that starting takes on top, so that starts are hit as well and the end is not reached.

    Args:
        count: How many.
        start_up: Seconds from the start of a process to its first step.
        duration: Seconds of an uninterrupted training, start included.
        seed: Of the moments.
    """
    generator = random.Random(seed)
    work = max(duration - start_up, 0)
    places = [0.0, *sorted(generator.uniform(0, work) for _ in range(count))]
    for before, place in pairwise(places):
        yield generator.uniform(0, start_up) + place - before


def look(folders: RunFolders) -> Found:
    """Looks at what a killed training has left, and marks its run KILLED as ``src.store doctor`` does.

    Raises:
        DataError: A checkpoint cannot be opened.
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
    return Found(f"epoch {epoch + 1}, step {steps + 1}", len(temps), marked, is_finished)
