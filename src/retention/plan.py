"""What to remove of which run: the retention rules, and which files on this machine belong to a run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ClaimError
from ..evaluation.auc import is_better
from ..tracking.deletion import own_model_folder, own_models
from ..tracking.names import CHECKPOINTS, FINISHED, TERMINAL_STATUSES
from ..tracking.stored_run import StoredRun
from ..training.run_folder import RunFolders, owners
from ..utils.config_fields import is_run_name
from ..utils.contained import contained, files_below, remove_tree

_DAY = 86_400_000  # milliseconds
_SHOWN = 80  # characters of a name

Action = Literal["keep", "checkpoints", "run"]
"""Keep everything, delete the checkpoints, or delete the whole run."""


@dataclass(frozen=True)
class Rules:
    """What to keep in addition to registered versions and unfinished runs.

    Attributes:
        keep_best: Number of runs of each model, modality and data, by val AUC.
        keep_days: Everything that ended less than so many days ago.
        runs: Delete whole runs instead of only their checkpoints.
    """

    keep_best: int = 3
    keep_days: float = 7.0
    runs: bool = False


@dataclass(frozen=True)
class PlannedAction:
    """What to do with a run, and why."""

    run: StoredRun
    action: Action
    reason: str


def plan(
    runs: Sequence[StoredRun], versions: Mapping[str, tuple[str, ...]], rules: Rules, now: int
) -> list[PlannedAction]:
    """Decide on every run; a pure function.

    Args:
        runs: All runs of the store.
        versions: The registered versions of each run, such as ``resnet18_A version 2``, by run id.
        rules: The rules.
        now: Milliseconds since the epoch.

    Returns:
        One action per run, in the same order.
    """
    ranks = _ranks(runs)
    return [_judge(run, versions.get(run.run_id, ()), rules, now, ranks.get(run.run_id)) for run in runs]


def _judge(
    run: StoredRun, versions: Sequence[str], rules: Rules, now: int, rank: int | None
) -> PlannedAction:
    if versions:
        return PlannedAction(run, "keep", f"registered: {', '.join(versions)}")
    if run.status not in TERMINAL_STATUSES or run.end_time is None:
        return PlannedAction(run, "keep", "unfinished")
    if not run.is_candidate:
        return PlannedAction(run, "keep", "trains no candidate")
    if now - run.end_time < rules.keep_days * _DAY:
        return PlannedAction(run, "keep", f"younger than {rules.keep_days:g} days")
    if rank is not None and rank <= rules.keep_best:
        return PlannedAction(run, "keep", f"among the best {rules.keep_best} of its group")
    where = "without a result" if rank is None else f"number {rank} of its group"
    age = f"{(now - run.end_time) / _DAY:.0f} days old"
    return PlannedAction(run, "run" if rules.runs else "checkpoints", f"{where}, {age}")


def _ranks(runs: Sequence[StoredRun]) -> Mapping[str, int]:
    """Return the rank of each finished run in its group, from 1; of equal runs the earlier is better."""
    groups: dict[tuple[str, str, str | None], list[StoredRun]] = {}
    for run in runs:
        if run.is_candidate and run.status == FINISHED and is_better(run.val_auc, None):
            groups.setdefault((*run.group, run.data_fingerprint), []).append(run)
    ranked = (sorted(group, key=lambda run: (-run.val_auc, run.start_time)) for group in groups.values())
    return {run.run_id: rank for group in ranked for rank, run in enumerate(group, start=1)}


@dataclass(frozen=True)
class Owned:
    """The files on this machine that belong to a run, and may be removed with it.

    Attributes:
        folders: Folders in the output folder; no path contains a link.
        stored: Folders of the run in a local store.
        skipped: What is not touched although the store says that it belongs to the run, and why.
    """

    folders: tuple[Path, ...] = ()
    stored: tuple[Path, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return all paths that would be deleted on this machine."""
        return (*self.folders, *self.stored)

    @property
    def size(self) -> int:
        """Return the bytes on disk; hard links of one file count once."""
        files = [file for folder in self.paths for file in files_below(folder)]
        states = {(state.st_dev, state.st_ino): state.st_size for state in map(Path.lstat, files)}
        return sum(states.values())


def owned(run: StoredRun, output: Path, *, whole: bool) -> Owned:
    """Find what belongs to a run, by the files in its folders and not by its name alone.

    Args:
        run: The run.
        output: The folder of all runs.
        whole: The whole run instead of only its checkpoints.

    Raises:
        TrackingError: The store cannot be read.
    """
    folders, skipped = _in_output(run, output, whole=whole)
    stored = []
    try:
        artifacts = run.artifact_folder()
        if artifacts is not None:
            stored.append(artifacts if whole else artifacts / CHECKPOINTS)
    except ClaimError as error:
        skipped.append(str(error))
    for logged in own_models(run) if whole else ():
        try:
            stored += filter(None, [own_model_folder(run, logged)])
        except ClaimError as error:
            skipped.append(str(error))
    existing = (folder for folder in stored if contained(folder.parent, folder) and folder.is_dir())
    return Owned(tuple(folders), tuple(existing), tuple(skipped))


def _in_output(run: StoredRun, output: Path, *, whole: bool) -> tuple[list[Path], list[str]]:
    if not is_run_name(run.folder_name):
        shown = run.folder_name.encode("unicode_escape").decode()[:_SHOWN]
        return [], [
            f"run {run.run_id}: {shown!r}, its experiment.name in the store, is not the name of a folder"
        ]
    folders = RunFolders(output, run.folder_name)
    wanted = (folders.results, folders.logs) if whole else (folders.checkpoints,)
    found = [folder for folder in wanted if os.path.lexists(folder)]
    if not found:
        return [], []
    named = owners(folders)
    if named != {run.run_id}:
        why = f"it says that it is of run {', '.join(sorted(named))}, and not {run.run_id}"
        if not named:
            why = f"nothing in it says that it is of run {run.run_id}"
        return [], [f"{folder}: {why}" for folder in found]
    real = {folder: contained(output, folder) for folder in found}
    skipped = [f"{folder}: reached through a link" for folder, path in real.items() if path is None]
    return [path for path in real.values() if path is not None], skipped


def other_output_folder(run: StoredRun, output: Path) -> Path | None:
    """Return the output folder that a run names, if its files are there and not in ``output``."""
    try:
        own = Path(run.output_dir).expanduser()
    except RuntimeError:  # the home of an unknown user
        return None
    if not own.is_absolute() or not is_run_name(run.folder_name):
        return None
    here, there = RunFolders(output, run.folder_name), RunFolders(own, run.folder_name)
    exists = any(os.path.lexists(folder) for folder in (there.results, there.logs))
    if not exists or own.resolve() == output.resolve() or run.run_id in owners(here):
        return None
    return own


def remove_folders(planned: Iterable[Path], owned_now: Owned, output: Path) -> list[str]:
    """Delete the planned folders that still belong to the run.

    Returns:
        Why the others were left alone.

    Raises:
        OSError: Something cannot be deleted.
    """
    now, skipped = set(owned_now.folders), []
    for folder in planned:
        if folder in now:
            remove_tree(output.resolve(), folder)
        elif os.path.lexists(folder):
            skipped.append(f"{folder}: no longer this run's own; it is left alone")
    return skipped
