"""Carries a plan out: one run after another, never a live one, and no failure stops the rest."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from src.data.packs import OldPack, find_old
from src.errors import MlprojectError, UserError
from src.retention.plan import Past, Rules, Verdict, plan
from src.tracking.names import CHECKPOINTS
from src.tracking.past_runs import (
    PastRun,
    artifact_bytes,
    artifact_files,
    delete_checkpoints,
    delete_run,
    has_ended,
    is_registered,
    model_folders,
    past_runs,
    purge,
    registered_runs,
    unpurged,
)
from src.tracking.store import local_folder, promotion_lock
from src.training.folders import RunFolders
from src.utils.cli import warn
from src.utils.io import file_lock
from src.utils.leftovers import Temp, find_temps

_DAY = 86_400
_NAME_LENGTH = 12  # of a pack, whose name is a hash


@dataclass(frozen=True)
class Removal:
    """Something to remove.

    Attributes:
        what: ``checkpoints``, ``run``, ``cache`` or ``temporary``.
        name: What a person calls it.
        reason: Why.
        size: Bytes that it frees.
        apply: Removes it.
        run: Of a run: which.
    """

    what: str
    name: str
    reason: str
    size: int
    apply: Callable[[], None]
    run: PastRun | None = None


@dataclass(frozen=True)
class Survey:
    """What there is: a verdict per run, and everything that is to go."""

    verdicts: Sequence[Verdict]
    removals: Sequence[Removal]


def survey(output: Path, rules: Rules) -> Survey:
    """Looks at the store and the output folder, and changes nothing.

    Args:
        output: The folder of runs, cache and temporary files.
        rules: What is kept.

    Raises:
        TrackingError: The store cannot be read.
    """
    runs, versions = past_runs(), registered_runs()
    seen = [_past(run, versions.get(run.run_id, ())) for run in runs]
    verdicts = plan(seen, rules, int(time.time() * 1000))
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    removals = [
        _removal(run, verdict, output, when)
        for run, verdict in zip(runs, verdicts, strict=True)
        if verdict.action != "keep"
    ]
    kept = [removal for removal in removals if removal.what == "run" or removal.size]
    return Survey(verdicts, [*kept, *_files(output, rules)])


def _past(run: PastRun, versions: tuple[str, ...]) -> Past:
    is_candidate = run.model is not None and run.modality is not None
    return Past(
        run.run_id,
        run.name,
        (run.model or "", run.modality or "", run.data) if is_candidate else None,
        run.status,
        run.val_auc,
        run.started,
        run.ended,
        versions,
    )


def _removal(run: PastRun, verdict: Verdict, output: Path, when: str) -> Removal:
    folders = _folders(run, output)
    name = f"{run.name} ({run.run_id[:8]})"
    if verdict.action == "run":
        size = _size([*_below(folders.results), *_below(folders.logs), *artifact_files(run), *_models(run)])
        return Removal("run", name, verdict.reason, size, lambda: _remove_run(run, folders, when), run)
    is_local = local_folder(run.artifact_uri) is not None
    remote = 0 if is_local else artifact_bytes(run, CHECKPOINTS)
    size = remote + _size([*_below(folders.checkpoints), *artifact_files(run, CHECKPOINTS)])
    return Removal(
        "checkpoints", name, verdict.reason, size, lambda: _remove_checkpoints(run, folders, when), run
    )


def _folders(run: PastRun, output: Path) -> RunFolders:
    """Where the run's files are: below the given folder, unless it was told another one."""
    own = Path(run.output_dir).expanduser()
    return RunFolders(own if own.is_absolute() else output, run.folder)


def _models(run: PastRun) -> list[Path]:
    return [file for folder in model_folders(run) for file in _below(folder)]


def _below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _size(files: Sequence[Path]) -> int:
    """Bytes on disk: what has several names counts once."""
    states = {(state.st_dev, state.st_ino): state.st_size for state in map(Path.stat, files)}
    return sum(states.values())


def _remove_checkpoints(run: PastRun, folders: RunFolders, when: str) -> None:
    with _alone(run, folders):
        delete_checkpoints(run, when)
        if folders.checkpoints.exists():
            shutil.rmtree(folders.checkpoints)


def _remove_run(run: PastRun, folders: RunFolders, when: str) -> None:
    with _alone(run, folders):
        delete_run(run, when)
        for folder in (folders.results, folders.logs):
            if folder.exists():
                shutil.rmtree(folder)


@contextmanager
def _alone(run: PastRun, folders: RunFolders) -> Iterator[None]:
    """Holds a run that nobody trains, and that nobody has resumed or registered since the plan was made.

    Raises:
        UserError: Somebody does, or has.
    """
    with folders.held() if folders.logs.is_dir() else nullcontext():
        if not has_ended(run.run_id):
            raise UserError(f"run {run.run_id} goes on again; it is left alone")
        if is_registered(run.run_id):
            raise UserError(f"run {run.run_id} is registered by now; it is left alone")
        yield


def clean(removals: Sequence[Removal]) -> int:
    """Removes everything that the survey found; returns the bytes that this freed.

    Raises:
        MlprojectError: Something could not be removed; it was named, everything else is done.
    """
    lock, freed, failed = promotion_lock(), 0, 0
    # No promotion registers a run between the look at it and its end.
    with file_lock(lock) if lock is not None else nullcontext():
        for removal in removals:
            try:
                removal.apply()
                freed += removal.size
            except (MlprojectError, OSError) as error:
                failed += 1
                warn(f"{removal.what} {removal.name} is left: {error}")
        deleted = unpurged()
        if deleted:
            try:
                purge(deleted)
            except MlprojectError as error:
                failed += 1
                warn(str(error))
    if failed:
        raise MlprojectError(f"not everything could be removed: {failed} things are left, named above")
    return freed


def _files(output: Path, rules: Rules) -> list[Removal]:
    """Decoded images that nobody has used for so many days, and what dead processes left."""
    packs = find_old(output / "cache" / "packs", rules.keep_days * _DAY)
    temps = [temp for temp in find_temps(output) if temp.is_leftover]
    return [*map(_of_pack, packs), *map(_of_temp, temps)]


def _of_pack(pack: OldPack) -> Removal:
    name = f"{pack.path.parent / pack.path.stem[:_NAME_LENGTH]}...{pack.path.suffix}"
    return Removal("cache", name, f"not used for {pack.age / _DAY:.0f} days", pack.size, pack.remove)


def _of_temp(temp: Temp) -> Removal:
    return Removal("temporary", str(temp.path), "left over", temp.size, temp.remove)
