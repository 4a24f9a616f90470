"""Where one run's files lie on disk, beside the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from ..errors import UserError
from ..utils.contained import contained, is_regular_file
from ..utils.io import file_lock, remove_temps
from ..utils.signature import sign, signature
from .checkpoint import run_of_checkpoint

_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolders:
    """The paths of one run.

    Attributes:
        output: The folder of all runs.
        name: The run's name there.
    """

    output: Path
    name: str

    @property
    def logs(self) -> Path:
        """Small text: the config and the table of epochs."""
        return self.output / "logs" / self.name

    @property
    def config(self) -> Path:
        """The resolved settings, written before the first epoch."""
        return self.logs / "config.yaml"

    @property
    def history(self) -> Path:
        """The table of epochs."""
        return self.logs / "training_history.csv"

    @property
    def results(self) -> Path:
        """Checkpoints, predictions and plots."""
        return self.output / self.name

    @property
    def checkpoints(self) -> Path:
        """``latest.pth`` and ``best_model.pth``."""
        return self.results / "checkpoints"

    def sign(self, run_id: str) -> None:
        """Record in both folders which run they belong to."""
        for folder in (self.logs, self.results):
            sign(folder, run_id)

    def signatures(self) -> set[str]:
        """Return the ids of the runs that the folders say they belong to; nothing is read through a link.

        Folders that an earlier release wrote say nothing.
        """
        real = (contained(self.output, folder) for folder in (self.logs, self.results))
        return {run_id for folder in real if folder and (run_id := signature(folder))}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folders and holds them, for a run that is new; of two that start at once, one gets them.

        Folders with nothing in them are free: a process may have died before it wrote anything.

        Raises:
            UserError: They are another run's.
        """
        with self.held():
            for folder in (self.logs, self.results):
                folder.mkdir(parents=True, exist_ok=True)
                if any(path.name != _LOCK for path in folder.iterdir()):
                    raise UserError(
                        f"experiment.name: {folder} belongs to another run; choose another name, "
                        "or move it away"
                    )
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from training this run at the same time; its end ends that, however it ends.

        Raises:
            UserError: One does already.
        """
        try:
            with file_lock(self.logs / _LOCK, timeout=0):
                yield
        except Timeout:
            raise UserError(f"{self.results}: another process trains this run right now") from None

    def sweep(self) -> None:
        """Removes what a process that died has left half-written; only for who holds the run."""
        for folder in (self.logs, self.results):
            remove_temps(folder)


def owners(folders: RunFolders) -> set[str]:
    """Return the ids of all runs that a run's folders name.

    One id is the rule. None is named where a release before wrote the folders and no checkpoint is
    left; several, where files of one run were put among those of another.
    """
    checkpoints = contained(folders.output, folders.checkpoints)
    files = [] if checkpoints is None else sorted(checkpoints.glob("*.pth"))
    named = {run_of_checkpoint(path) for path in files if is_regular_file(path)}
    return folders.signatures() | {run_id for run_id in named if run_id is not None}
