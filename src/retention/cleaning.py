"""Carries a plan out: one run after another, never a live one, and no failure stops the rest."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..data.packs import OldPack, find_old
from ..errors import ClaimError, MlprojectError, UserError
from ..tracking.deletion import (
    artifact_bytes,
    delete_checkpoints,
    delete_run,
    has_ended,
    purge,
    registered_versions,
    training_runs,
    unpurged_runs,
)
from ..tracking.names import CHECKPOINTS
from ..tracking.store import is_server, promotion_lock, resolve_uri
from ..tracking.stored_run import StoredRun
from ..training.folders import RunFolders
from ..training.ownership import owners
from ..utils.cli import warn
from ..utils.config_fields import is_run_name
from ..utils.contained import contained
from ..utils.io import file_lock
from ..utils.leftovers import Temp, find_temps
from .owning import Owned, kept_elsewhere, owned, remove_folders
from .plan import Past, Rules, Verdict, plan

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
        paths: What goes from this machine's disk.
    """

    what: str
    name: str
    reason: str
    size: int
    apply: Callable[[], None]
    run: StoredRun | None = None
    paths: Sequence[Path] = ()


@dataclass(frozen=True)
class Survey:
    """What there is: a verdict per run, everything that is to go, and what is left alone, and why."""

    verdicts: Sequence[Verdict]
    removals: Sequence[Removal]
    left: Sequence[str] = ()


def survey(output: Path, rules: Rules) -> Survey:
    """Looks at the store and the output folder, and changes nothing.

    Args:
        output: The folder of runs, cache and temporary files.
        rules: What is kept.

    Raises:
        TrackingError: The store cannot be read.
    """
    runs, versions = training_runs(), registered_versions()
    seen = [_past(run, _versions(run, versions)) for run in runs]
    verdicts = plan(seen, rules, int(time.time() * 1000))
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    removals, left = [], []
    for run, verdict in zip(runs, verdicts, strict=True):
        if verdict.action == "keep":
            continue
        if other := kept_elsewhere(run, output):
            left.append(f"run {run.run_id}: its files are in {other}; name that with --output-dir")
            continue
        mine = owned(run, output, whole=verdict.action == "run")
        left += mine.left
        removal = _removal(run, verdict, mine, output, when)
        if removal.what == "run" or removal.size:
            removals.append(removal)
    for run in [] if is_server(resolve_uri()) else unpurged_runs():
        mine = owned(run, output, whole=True)
        left += mine.left
        removals.append(_of_run(run, "deleted by a cleanup that did not end", mine, output, None))
    files, beside = _files(output, rules)
    return Survey(verdicts, [*removals, *files], [*left, *beside])


def _versions(run: StoredRun, versions: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The registered versions that are of a run, or of a model that it has logged."""
    found = (version for key in (run.run_id, *run.models) for version in versions.get(key, ()))
    return tuple(dict.fromkeys(found))


def _past(run: StoredRun, versions: tuple[str, ...]) -> Past:
    return Past(
        run.run_id,
        run.name,
        (run.model, run.modality, run.data_fingerprint or "") if run.is_candidate else None,
        run.status,
        run.val_auc,
        run.start_time,
        run.end_time,
        versions,
    )


def _removal(run: StoredRun, verdict: Verdict, mine: Owned, output: Path, when: str) -> Removal:
    if verdict.action == "run":
        return _of_run(run, verdict.reason, mine, output, when)
    size = mine.size + _remote_size(run)
    return Removal(
        "checkpoints",
        _name(run),
        verdict.reason,
        size,
        lambda: _remove_checkpoints(run, mine, output, when),
        run,
        mine.paths,
    )


def _of_run(run: StoredRun, reason: str, mine: Owned, output: Path, when: str | None) -> Removal:
    return Removal(
        "run",
        _name(run),
        reason,
        mine.size,
        lambda: _remove_run(run, mine, output, when),
        run,
        mine.paths,
    )


def _name(run: StoredRun) -> str:
    return f"{run.name} ({run.run_id[:8]})"


def _remote_size(run: StoredRun) -> int:
    try:
        return artifact_bytes(run, CHECKPOINTS) if run.artifact_folder() is None else 0
    except ClaimError:  # the survey says so
        return 0


def _remove_checkpoints(run: StoredRun, planned: Owned, output: Path, when: str) -> None:
    with _alone(run, output):
        now = owned(run, output, whole=False)
        if _has_place(run):
            delete_checkpoints(run, when)
        _warn_left(remove_folders(planned.folders, now, output))


def _remove_run(run: StoredRun, planned: Owned, output: Path, when: str | None) -> None:
    """Removes a run, or the rest of one that is deleted already, where ``when`` is None."""
    with _alone(run, output):
        now = owned(run, output, whole=True)
        if when is not None:
            delete_run(run, when)
        _warn_left(remove_folders(planned.folders, now, output))
        if not is_server(resolve_uri()):
            _warn_left(purge([run]))


def _has_place(run: StoredRun) -> bool:
    try:
        run.artifact_folder()
    except ClaimError:  # the survey says so
        return False
    return True


def _warn_left(left: Sequence[str]) -> None:
    for line in left:
        warn(line)


@contextmanager
def _alone(run: StoredRun, output: Path) -> Iterator[None]:
    """Holds a run that nobody trains, and that nobody has resumed or registered since the plan was made.

    Raises:
        UserError: Somebody does, or has.
    """
    folders = RunFolders(output, run.folder_name)
    is_own = is_run_name(run.folder_name) and run.run_id in owners(folders)
    has_logs = is_own and contained(output, folders.logs) is not None and folders.logs.is_dir()
    with folders.held() if has_logs else nullcontext():
        if not has_ended(run.run_id):
            raise UserError(f"run {run.run_id} goes on again; it is left alone")
        if _versions(run, registered_versions()):
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
        if is_server(resolve_uri()) and (deleted := unpurged_runs()):
            try:
                purge(deleted)
            except MlprojectError as error:
                failed += 1
                warn(str(error))
    if failed:
        raise MlprojectError(f"not everything could be removed: {failed} things are left, named above")
    return freed


def _files(output: Path, rules: Rules) -> tuple[list[Removal], list[str]]:
    """Decoded images that nobody has used for so many days, and what dead processes left."""
    packs, left = output / "cache" / "packs", list[str]()
    if packs.is_dir() and contained(output, packs) is None:
        old, left = [], [f"{packs}: reached through a link; delete in it by hand what is no longer used"]
    else:
        old = find_old(packs, rules.keep_days * _DAY)
    temps = [temp for temp in find_temps(output) if temp.is_leftover]
    return [*map(_of_pack, old), *map(_of_temp, temps)], left


def _of_pack(pack: OldPack) -> Removal:
    name = f"{pack.path.parent / pack.path.stem[:_NAME_LENGTH]}...{pack.path.suffix}"
    reason = f"not used for {pack.age / _DAY:.0f} days"
    return Removal("cache", name, reason, pack.size, pack.remove, paths=[pack.path])


def _of_temp(temp: Temp) -> Removal:
    return Removal("temporary", str(temp.path), "left over", temp.size, temp.remove, paths=[temp.path])
