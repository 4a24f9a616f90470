"""The folders of a run on disk, apart from the store: paths, ownership and lock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from ..errors import UserError
from ..utils.contained import contained, is_regular_file
from ..utils.io import file_lock, is_temp, read_run_id, remove_temps, write_run_id
from .checkpoint import run_of_checkpoint

_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolders:
    """The paths of one run.

    Attributes:
        output: The folder of all runs.
        name: Name of the run's folders.
    """

    output: Path
    name: str

    @property
    def logs(self) -> Path:
        """Folder of the config and the history."""
        return self.output / "logs" / self.name

    @property
    def config(self) -> Path:
        """Path of the resolved settings, written before the first epoch."""
        return self.logs / "config.yaml"

    @property
    def history(self) -> Path:
        """Path of the history."""
        return self.logs / "training_history.csv"

    @property
    def results(self) -> Path:
        """Folder of checkpoints, predictions and plots."""
        return self.output / self.name

    @property
    def checkpoints(self) -> Path:
        """Folder of ``latest.pth`` and ``best_model.pth``."""
        return self.results / "checkpoints"

    def write_run_id(self, run_id: str) -> None:
        """Write the run id into both folders."""
        for folder in (self.logs, self.results):
            write_run_id(folder, run_id)

    def run_ids(self) -> set[str]:
        """Return the run ids in the folders, without following links; earlier releases wrote none."""
        real = (contained(self.output, folder) for folder in (self.logs, self.results))
        return {run_id for folder in real if folder and (run_id := read_run_id(folder))}

    @contextmanager
    def create_and_lock(self) -> Iterator[None]:
        """Create and lock the folders of a new run, which may only hold temporary files of a killed process.

        Raises:
            UserError: They belong to another run.
        """
        with self.lock():
            for folder in (self.logs, self.results):
                folder.mkdir(parents=True, exist_ok=True)
                if any(path.name != _LOCK and not is_temp(path) for path in folder.iterdir()):
                    raise UserError(
                        f"experiment.name: {folder} belongs to another run; choose another name, "
                        "or move it away"
                    )
            self.remove_temps()
            yield

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run against training by other processes; the lock ends with the process.

        Raises:
            UserError: Another process trains this run.
        """
        try:
            with file_lock(self.logs / _LOCK, timeout=0):
                yield
        except Timeout:
            raise UserError(f"{self.results}: another process is training this run") from None

    def remove_temps(self) -> None:
        """Remove the temporary files of a killed process; the caller must hold the lock."""
        for folder in (self.logs, self.results):
            remove_temps(folder)


def owners(folders: RunFolders) -> set[str]:
    """Return the ids of all runs that the folders or the checkpoints in them name.

    Normally there is one. There is none if an earlier release wrote the folders and no checkpoint is left,
    and several if files of different runs were mixed.
    """
    checkpoints = contained(folders.output, folders.checkpoints)
    files = [] if checkpoints is None else sorted(checkpoints.glob("*.pth"))
    named = {run_of_checkpoint(path) for path in files if is_regular_file(path)}
    return folders.run_ids() | {run_id for run_id in named if run_id is not None}
