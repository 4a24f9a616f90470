"""Whose folders are: by the record that a run leaves in them, and by its checkpoints."""

from ..utils.contained import contained, is_regular_file
from .checkpoint import run_of_checkpoint
from .folders import RunFolders


def owners(folders: RunFolders) -> set[str]:
    """Return the ids of all runs that a run's folders name.

    One id is the rule. None is named where a release before wrote the folders and no checkpoint is
    left; several, where files of one run were put among those of another.
    """
    checkpoints = contained(folders.output, folders.checkpoints)
    files = [] if checkpoints is None else sorted(checkpoints.glob("*.pth"))
    named = {run_of_checkpoint(path) for path in files if is_regular_file(path)}
    return folders.signatures() | {run_id for run_id in named if run_id is not None}
