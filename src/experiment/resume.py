"""Finds the run to go on with, and makes sure that it is the same training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import ConfigError, DataError, UserError
from src.models.spec import InputSpec
from src.tracking import names
from src.tracking.interrupted import KnownRun, find_unfinished, read_known
from src.training.checkpoint import CheckpointStore
from src.training.folders import RunFolders
from src.utils.cli import warn
from src.utils.config import Config
from src.utils.dotted import merge_dotted

MAY_CHANGE = frozenset(
    {
        "data.root_dir",
        "data.cache_dir",
        "data.cache_gb",
        "training.epochs",
        "training.device",
        "training.checkpoint_every_minutes",
        "experiment.output_dir",
    }
)
"""Settings that do not say what is trained; epochs may only be raised."""


@dataclass(frozen=True)
class Interrupted:
    """A run to go on with.

    Attributes:
        run_id: Its id.
        config: Its settings, with what may change as asked for now.
        folders: Its folders.
        checkpoint: Where it stopped, None where that was before its first checkpoint.
        tags: What the store knows of it.
    """

    run_id: str
    config: Config
    folders: RunFolders
    checkpoint: dict[str, Any] | None
    tags: Mapping[str, str]

    @property
    def spec(self) -> InputSpec | None:
        """The input that its network expects."""
        return None if self.checkpoint is None else InputSpec.from_dict(self.checkpoint["input"])

    def check_data(self, fingerprint: str) -> None:
        """Refuses other data than the run has seen.

        Raises:
            DataError: It is other data.
        """
        if fingerprint != self.tags.get(names.DATA_FINGERPRINT):
            before = self.tags.get(names.DATA_FINGERPRINT, "none")
            raise DataError(
                f"--resume {self.run_id}: the data has changed since (its fingerprint was {before[:12]} "
                f"and is {fingerprint[:12]}); start a new run, or restore the data"
            )


def resume_by_id(run_id: str, changes: Mapping[str, Any]) -> Interrupted:
    """The run of an id.

    Args:
        run_id: Its id.
        changes: Settings that the user asks for, by dotted key.

    Raises:
        UserError: There is no such run here, it is finished, or another training is asked for.
    """
    known = read_known(run_id)
    folders = RunFolders(
        Path(changes.get("experiment.output_dir", known.output_dir)).expanduser(), known.name
    )
    if not folders.config.is_file():
        raise UserError(
            f"--resume {run_id}: {folders.logs} is not here; the run's files were in {known.output_dir}: "
            "start from the same folder, or name another with --set experiment.output_dir=..."
        )
    config = _same_training(Config.from_file(folders.config), changes, run_id)
    return _interrupted(known, config, folders)


def resume_auto(config: Config, tags: Mapping[str, str]) -> Interrupted | None:
    """The one unfinished run with these settings and this data, None where there is none.

    Raises:
        UserError: There are several.
    """
    found = find_unfinished(tags)
    if len(found) > 1:
        listed = ", ".join(f"{known.run_id} ({known.status}, {known.name})" for known in found)
        raise UserError(f"--resume auto: {len(found)} unfinished runs fit: {listed}; name one of them")
    if not found:
        return None
    return _interrupted(found[0], config, RunFolders(config.output_dir, found[0].name))


def _interrupted(known: KnownRun, config: Config, folders: RunFolders) -> Interrupted:
    folders.sweep()
    checkpoint = None
    store = CheckpointStore(folders.checkpoints)
    if store.latest.exists() or store.previous.exists():
        checkpoint, warning = store.load_latest()
        if warning is not None:
            warn(warning)
        if checkpoint["run_id"] != known.run_id:
            raise UserError(f"{folders.checkpoints}: holds the checkpoints of run {checkpoint['run_id']}")
    if known.status == "FINISHED" and (checkpoint is None or config.training.epochs <= checkpoint["epoch"]):
        raise UserError(
            f"--resume {known.run_id}: the run is finished; raise training.epochs to train it further"
        )
    return Interrupted(known.run_id, config, folders, checkpoint, known.tags)


def _same_training(stored: Config, changes: Mapping[str, Any], run_id: str) -> Config:
    """The run's settings with ``changes`` that may be; what was ``auto`` or unset then is what it came to."""
    said = {key: value for key, value in changes.items() if value not in ("auto", None)}
    config = Config.from_dict(merge_dotted(stored.to_dict(), said), f"--resume {run_id}")
    before, after = stored.flat(), config.flat()
    differing = [key for key in before if before[key] != after[key] and key not in MAY_CHANGE]
    if differing:
        shown = ", ".join(f"{key} (was {before[key]}, now {after[key]})" for key in differing)
        raise ConfigError(f"--resume {run_id}: another training than was begun: {shown}; start a new run")
    if config.training.epochs < stored.training.epochs:
        raise ConfigError(
            f"--resume {run_id}: training.epochs was {stored.training.epochs} and may only be raised"
        )
    return config
