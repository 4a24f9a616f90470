"""What on this machine's disk is a run's own, by the record that lies there and not by its name alone."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ClaimError
from ..tracking.deletion import own_model_folder, own_models
from ..tracking.names import CHECKPOINTS
from ..tracking.stored_run import StoredRun
from ..training.folders import RunFolders
from ..training.ownership import owners
from ..utils.config_fields import is_run_name
from ..utils.contained import contained, files_below, remove_tree

_SHOWN = 80  # characters of a name


@dataclass(frozen=True)
class Owned:
    """What may go with a run.

    Attributes:
        folders: Those below the output folder; no path has a link in it.
        kept: Files of the run in a local store.
        left: What lies where the store says that the run's files are, and why it is not touched.
    """

    folders: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that would go from this machine's disk."""
        return (*self.folders, *self.kept)

    @property
    def size(self) -> int:
        """Bytes on disk: what has several names counts once."""
        files = [file for folder in self.paths for file in files_below(folder)]
        states = {(state.st_dev, state.st_ino): state.st_size for state in map(Path.lstat, files)}
        return sum(states.values())


def owned(run: StoredRun, output: Path, *, whole: bool) -> Owned:
    """Find what is the run's own.

    Args:
        run: The run.
        output: The folder of all runs.
        whole: All of it, and not only the checkpoints.

    Raises:
        TrackingError: The store cannot be read.
    """
    folders, left = _in_output(run, output, whole=whole)
    kept = []
    try:
        place = run.artifact_folder()
        if place is not None:
            kept.append(place if whole else place / CHECKPOINTS)
    except ClaimError as error:
        left.append(str(error))
    for logged in own_models(run) if whole else ():
        try:
            kept += filter(None, [own_model_folder(run, logged)])
        except ClaimError as error:
            left.append(str(error))
    there = (folder for folder in kept if contained(folder.parent, folder) and folder.is_dir())
    return Owned(tuple(folders), tuple(there), tuple(left))


def _in_output(run: StoredRun, output: Path, *, whole: bool) -> tuple[list[Path], list[str]]:
    if not is_run_name(run.folder_name):
        shown = run.folder_name.encode("unicode_escape").decode()[:_SHOWN]
        return [], [
            f"run {run.run_id}: {shown!r}, its experiment.name in the store, is not the name of a folder"
        ]
    folders = RunFolders(output, run.folder_name)
    wanted = (folders.results, folders.logs) if whole else (folders.checkpoints,)
    there = [folder for folder in wanted if os.path.lexists(folder)]
    if not there:
        return [], []
    named = owners(folders)
    if named != {run.run_id}:
        return [], [f"{folder}: {_why(named, run.run_id)}" for folder in there]
    real = {folder: contained(output, folder) for folder in there}
    left = [f"{folder}: reached through a link" for folder, path in real.items() if path is None]
    return [path for path in real.values() if path is not None], left


def _why(named: set[str], run_id: str) -> str:
    if not named:
        return f"nothing in it says that it is of run {run_id}"
    return f"it says that it is of run {', '.join(sorted(named))}, and not {run_id}"


def kept_elsewhere(run: StoredRun, output: Path) -> Path | None:
    """Return the other output folder that a run names, if its files are there and not in ``output``."""
    try:
        own = Path(run.output_dir).expanduser()
    except RuntimeError:  # a home of nobody
        return None
    if not own.is_absolute() or not is_run_name(run.folder_name):
        return None
    here, there = RunFolders(output, run.folder_name), RunFolders(own, run.folder_name)
    is_there = any(os.path.lexists(folder) for folder in (there.results, there.logs))
    if not is_there or own.resolve() == output.resolve() or run.run_id in owners(here):
        return None
    return own


def remove_folders(planned: Iterable[Path], owned_now: Owned, output: Path) -> list[str]:
    """Delete the folders that were planned and still are the run's own.

    Returns:
        Why the others were left alone.

    Raises:
        OSError: Something cannot be deleted.
    """
    now, left = set(owned_now.folders), []
    for folder in planned:
        if folder in now:
            remove_tree(output.resolve(), folder)
        elif os.path.lexists(folder):
            left.append(f"{folder}: no longer this run's own; it is left alone")
    return left
