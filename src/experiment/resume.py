"""Find the run to resume, and check that it is the same training."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..data.dataset import Dataset
from ..errors import ConfigError, DataError, UserError
from ..evaluation.metric_names import TRAIN_LOSS
from ..models.input_spec import InputSpec
from ..tracking import names
from ..tracking.journal import Journal
from ..tracking.liveness import check_not_running, find_unfinished, read_resumable
from ..tracking.stored_run import StoredRun
from ..tracking.sync import sync
from ..training.checkpoint import CheckpointStore
from ..training.optim import resolve_defaults
from ..training.run_folder import RunFolders
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.config_fields import is_run_name
from ..utils.config_yaml import merge_dotted
from ..utils.project import in_project

MAY_CHANGE = frozenset(
    {
        "data.root_dir",
        "data.images",
        "data.exclude",  # the fingerprint shows whether the images are the same
        "data.cache_dir",
        "data.cache_gb",
        "data.device_cache",
        "training.epochs",
        "training.device",
        "training.compile",
        "training.checkpoint_every_minutes",
        "training.save_in_background",
        "experiment.output_dir",
    }
)
"""Settings that may differ in a resumed run; epochs may only be raised."""


@dataclass(frozen=True)
class ResumableRun:
    """An unfinished run that this process has locked.

    Attributes:
        run_id: Its id.
        config: Its settings, with the changes of this command.
        folders: Its folders.
        checkpoint: Its newest checkpoint, None if it was interrupted before the first one.
        tags: Its tags in the store.
    """

    run_id: str
    config: Config
    folders: RunFolders
    checkpoint: dict[str, Any] | None
    tags: Mapping[str, str]

    @property
    def spec(self) -> InputSpec | None:
        """Return the input that its model expects, None without a checkpoint."""
        return None if self.checkpoint is None else InputSpec.from_dict(self.checkpoint["input"])

    def check_data(self, dataset: Dataset) -> None:
        """Refuse data or a split that the run was not trained on.

        Raises:
            DataError: The data or the split differs.
        """
        now = {
            names.DATA_FINGERPRINT: dataset.fingerprint,
            names.SPLIT_FINGERPRINT: dataset.split_fingerprint,
        }
        for name, fingerprint in now.items():
            before = self.tags.get(name, "none")
            if fingerprint != before:
                what = "data" if name == names.DATA_FINGERPRINT else "split"
                raise DataError(
                    f"--resume {self.run_id}: the {what} has changed since (its fingerprint was "
                    f"{before[:12]} and is {fingerprint[:12]}); start a new run, or restore the data"
                )

    def check_batches(self, min_micro_batch: int) -> None:
        """Refuse to resume within an epoch if its batches would be split differently now.

        Raises:
            UserError: The number of processes has changed, and each has its own batch norm.
        """
        if self.checkpoint is None or self.checkpoint["steps"] == 0:
            return
        if self.checkpoint["smallest_pass"] != min_micro_batch:
            raise UserError(
                f"--resume {self.run_id}: it stopped within epoch {self.checkpoint['epoch'] + 1}, whose "
                "batches depend on the number of processes; resume with as many as before "
                f"({self.tags.get(names.ENV_PREFIX + 'processes', '1')})"
            )

    def inexact(self, tags: Mapping[str, str]) -> Iterator[str]:
        """Yield the changes of the environment since the run started; ``tags`` describe the current one."""
        for name, now in tags.items():
            before = self.tags.get(name, now)
            if name.startswith(names.ENV_PREFIX) and before != now:
                yield f"{name.removeprefix(names.ENV_PREFIX)} was {before}, now {now}"


def resume_by_id(run_id: str, changes: Mapping[str, Any], held: ExitStack) -> ResumableRun:
    """Return the run with this id.

    Args:
        run_id: Its id.
        changes: Settings to change, by dotted key.
        held: Keeps the lock of the run.

    Raises:
        UserError: The run is not found or finished, another process is training it, or settings
            that must not change differ.
        TrackingError: The store cannot be read, or a server does not accept pending deliveries.
    """
    known = read_resumable(run_id)
    output = in_project(changes.get("experiment.output_dir", known.output_dir))
    known, folders, checkpoint = _lock(known, RunFolders(output, known.folder_name), held)
    stored = Config.from_file(folders.config)
    if checkpoint is not None:  # the file may have been edited
        stored = Config.from_dict(checkpoint["config"], str(folders.checkpoints))
    config = _same_training(resolve_defaults(stored), changes, run_id)
    return _check_unfinished(ResumableRun(run_id, config, folders, checkpoint, known.tags), known.status)


def resume_auto(config: Config, tags: Mapping[str, str], held: ExitStack) -> ResumableRun | None:
    """Return the only unfinished run with these settings and this data, None if there is none.

    Args:
        config: The settings.
        tags: Tags of such a run.
        held: Keeps the lock of the run.

    Raises:
        UserError: There are several such runs, or another process is training it.
        TrackingError: The store cannot be read, or a server does not accept pending deliveries.
    """
    found = [(run, folders) for run in find_unfinished(tags) if (folders := _folders(run, config))]
    if len(found) > 1:
        listed = ", ".join(f"{run.run_id} ({run.status}, {folders.name})" for run, folders in found)
        raise UserError(f"--resume auto: {len(found)} unfinished runs match: {listed}; name one of them")
    if not found:
        return None
    known, folders, checkpoint = _lock(*found[0], held)
    return _check_unfinished(
        ResumableRun(known.run_id, config, folders, checkpoint, known.tags), known.status
    )


def _folders(run: StoredRun, config: Config) -> RunFolders | None:
    """Return the folders of an unfinished run; None if it was killed before it got any.

    Until the run's params are logged, only the run id in the folders shows that they belong to it.
    """
    if run.is_training:
        return RunFolders(config.output_dir, run.folder_name)
    named = RunFolders(config.output_dir, config.experiment.name or "")
    return named if config.experiment.name and named.run_ids() == {run.run_id} else None


def _lock(
    known: StoredRun, folders: RunFolders, held: ExitStack
) -> tuple[StoredRun, RunFolders, dict[str, Any] | None]:
    """Lock a run, send pending deliveries to the store, and open the checkpoint."""
    if not is_run_name(folders.name):
        raise UserError(
            f"--resume {known.run_id}: its experiment.name in the store is "
            f"{folders.name[:80]!r}, which is not a valid folder name; nothing was opened there"
        )
    if known.is_training and not folders.config.exists():
        raise UserError(
            f"--resume {known.run_id}: {folders.logs} does not exist; the run's files were in "
            f"{known.output_dir}: start from the same folder, or name another with "
            "--set experiment.output_dir=..."
        )
    if others := folders.run_ids() - {known.run_id}:
        raise UserError(
            f"--resume {known.run_id}: {folders.results} belongs to run {', '.join(sorted(others))}"
        )
    held.enter_context(folders.lock())
    check_not_running(known)
    if Journal.exists(folders.results):
        sync(folders.results)
    # The process that had the lock may have finished the run in the meantime.
    now = read_resumable(known.run_id, must_have_params=known.is_training)
    return now, folders, _open_checkpoint(known, folders)


def _open_checkpoint(known: StoredRun, folders: RunFolders) -> dict[str, Any] | None:
    folders.remove_temps()
    store = CheckpointStore(folders.checkpoints)
    if not store.latest.exists() and not store.previous.exists():
        if TRAIN_LOSS in known.metrics:
            raise UserError(
                f"--resume {known.run_id}: its checkpoints are missing in {folders.checkpoints}; "
                "restore them, or start a new run"
            )
        return None
    checkpoint, warning = store.load_latest()
    if warning is not None:
        warn(warning)
    if checkpoint["run_id"] != known.run_id:
        raise UserError(f"{folders.checkpoints}: holds the checkpoints of run {checkpoint['run_id']}")
    return checkpoint


def _check_unfinished(run: ResumableRun, status: str) -> ResumableRun:
    epochs = int(run.config.training.epochs)
    epoch = epochs if run.checkpoint is None else run.checkpoint["epoch"]
    if status == names.FINISHED and epochs <= epoch:
        raise UserError(
            f"--resume {run.run_id}: the run is finished; raise training.epochs to train it further"
        )
    return run


def _same_training(stored: Config, changes: Mapping[str, Any], run_id: str) -> Config:
    """Return the run's settings with permitted ``changes``; ``auto`` and unset values stay."""
    given = {key: value for key, value in changes.items() if value not in ("auto", None)}
    config = Config.from_dict(merge_dotted(stored.to_dict(), given), f"--resume {run_id}")
    before, after = stored.flat(), config.flat()
    differing = [key for key in before if before[key] != after[key] and key not in MAY_CHANGE]
    if differing:
        shown = ", ".join(f"{key} (was {before[key]}, now {after[key]})" for key in differing)
        raise ConfigError(f"--resume {run_id}: these settings must not change: {shown}; start a new run")
    if int(config.training.epochs) < int(stored.training.epochs):
        raise ConfigError(
            f"--resume {run_id}: training.epochs was {stored.training.epochs} and may only be raised"
        )
    return config
