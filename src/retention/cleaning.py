"""Cleanup of runs, cache and temporary files: never of a live run, and no failure stops the rest."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ..data.array_cache import UnusedArray, find_unused
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
from ..tracking.project_run import mark_project_run
from ..tracking.store import is_server, open_store, promotion_lock, quiet_client, resolve_uri
from ..tracking.stored_run import StoredRun
from ..training.run_folder import RunFolders, owners
from ..utils.cli import warn
from ..utils.config_fields import is_run_name
from ..utils.console import wide_console
from ..utils.contained import contained
from ..utils.io import file_lock, find_temps, relative_to_cwd
from .plan import Owned, PlannedAction, Rules, other_output_folder, owned, plan, remove_folders

_DAY = 86_400
_NAME_LENGTH = 12  # of a cache file, whose name is a hash


@dataclass(frozen=True)
class Removal:
    """Something to remove.

    Attributes:
        what: ``checkpoints``, ``run``, ``cache`` or ``temporary``.
        name: Its name for the user.
        reason: Why it is removed.
        size: Bytes that it frees.
        apply: Removes it.
        paths: What is deleted on this machine.
    """

    what: str
    name: str
    reason: str
    size: int
    apply: Callable[[], None]
    paths: Sequence[Path] = ()


@dataclass(frozen=True)
class Survey:
    """Result of `survey`: an action per run, what is to be removed, and what is left alone, with reasons."""

    actions: Sequence[PlannedAction]
    removals: Sequence[Removal]
    skipped: Sequence[str] = ()


def survey(output: Path, rules: Rules) -> Survey:
    """Plan a cleanup of the store and the output folder, without changing anything.

    Args:
        output: The folder of runs, cache and temporary files.
        rules: What to keep.

    Raises:
        TrackingError: The store cannot be read.
    """
    runs, registered = training_runs(), registered_versions()
    versions = {run.run_id: _versions(run, registered) for run in runs}
    actions = plan(runs, versions, rules, int(time.time() * 1000))
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    removals, left = [], []
    for planned in actions:
        run = planned.run
        if planned.action == "keep":
            continue
        if other := other_output_folder(run, output):
            left.append(f"run {run.run_id}: its files are in {other}; name that with --output-dir")
            continue
        mine = owned(run, output, whole=planned.action == "run")
        left += mine.skipped
        if planned.action == "run":
            removals.append(_run_removal(run, planned.reason, mine, output, when))
        elif size := mine.size + _remote_size(run):
            apply = partial(_remove_checkpoints, run, mine, output, when)
            removals.append(Removal("checkpoints", _name(run), planned.reason, size, apply, mine.paths))
    for run in [] if is_server(resolve_uri()) else unpurged_runs():
        mine = owned(run, output, whole=True)
        left += mine.skipped
        removals.append(_run_removal(run, "deleted by a cleanup that did not end", mine, output, None))
    files, skipped = _files(output, rules)
    return Survey(actions, [*removals, *files], [*left, *skipped])


def _versions(run: StoredRun, versions: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the registered versions of a run, or of a model that it has logged."""
    found = (version for key in (run.run_id, *run.models) for version in versions.get(key, ()))
    return tuple(dict.fromkeys(found))


def _run_removal(run: StoredRun, reason: str, mine: Owned, output: Path, when: str | None) -> Removal:
    apply = partial(_remove_run, run, mine, output, when)
    return Removal("run", _name(run), reason, mine.size, apply, mine.paths)


def _name(run: StoredRun) -> str:
    return f"{run.name} ({run.run_id[:8]})"


def _remote_size(run: StoredRun) -> int:
    with suppress(ClaimError):  # `survey` reports it
        return artifact_bytes(run, CHECKPOINTS) if run.artifact_folder() is None else 0
    return 0


def _remove_checkpoints(run: StoredRun, planned: Owned, output: Path, when: str) -> None:
    with _locked(run, output):
        now = owned(run, output, whole=False)
        with suppress(ClaimError):  # `survey` reports it
            delete_checkpoints(run, when)
        _warn_skipped(remove_folders(planned.folders, now, output))


def _remove_run(run: StoredRun, planned: Owned, output: Path, when: str | None) -> None:
    """Remove a run, or the rest of a run that is deleted already if ``when`` is None."""
    with _locked(run, output):
        now = owned(run, output, whole=True)
        if when is not None:
            delete_run(run, when)
        _warn_skipped(remove_folders(planned.folders, now, output))
        if not is_server(resolve_uri()):
            _warn_skipped(purge([run]))


def _warn_skipped(left: Sequence[str]) -> None:
    for line in left:
        warn(line)


@contextmanager
def _locked(run: StoredRun, output: Path) -> Iterator[None]:
    """Hold the lock of a run that was not resumed or registered since the plan was made."""
    folders = RunFolders(output, run.folder_name)
    is_own = is_run_name(run.folder_name) and run.run_id in owners(folders)
    has_logs = is_own and contained(output, folders.logs) is not None and folders.logs.is_dir()
    with folders.lock() if has_logs else nullcontext():
        if not has_ended(run.run_id):
            raise UserError(f"run {run.run_id} was resumed; it is left alone")
        if _versions(run, registered_versions()):
            raise UserError(f"run {run.run_id} is registered by now; it is left alone")
        yield


def clean_up(output: Path, rules: Rules, *, apply: bool) -> None:
    """Print what a cleanup removes and keeps, and remove it if ``apply`` is given.

    Raises:
        StoreError: The store does not exist.
        MlprojectError: The store cannot be read, or something could not be removed.
    """
    open_store(must_exist=True)
    mark_project_run("cleanup")
    with quiet_client():
        found = survey(output, rules)
        _show(found)
        if apply:
            print(f"freed {decimal(clean(found.removals))}")
        else:
            print("nothing was changed; --apply removes what is listed")


def _show(found: Survey) -> None:
    if found.removals:
        table = Table("remove", "of", "size", "why")
        for removal in found.removals:
            table.add_row(removal.what, escape(removal.name), decimal(removal.size), escape(removal.reason))
        wide_console().print(table)
    for path in (path for removal in found.removals for path in removal.paths):
        print(f"path         {relative_to_cwd(path)}")
    for line in found.skipped:
        print(f"left alone   {line}")
    reasons = Counter(a.reason.partition(":")[0] for a in found.actions if a.action == "keep")
    kept = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    print(f"kept whole   {kept or 'no runs'}")
    print(f"to remove    {len(found.removals)} things, {decimal(sum(r.size for r in found.removals))}")


def clean(removals: Sequence[Removal]) -> int:
    """Remove everything that `survey` found; return the number of freed bytes.

    Raises:
        MlprojectError: Something could not be removed, as a warning says; everything else is removed.
    """
    lock, freed, failed = promotion_lock(), 0, 0
    # No promotion may register a run between its check and its removal.
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
    """Return decoded images that were not used for so many days, and temporary files of dead processes."""
    packs, left = output / "cache" / "packs", list[str]()
    if packs.is_dir() and contained(output, packs) is None:
        old, left = [], [f"{packs}: reached through a link; delete unused files there manually"]
    else:
        old = find_unused(packs, rules.keep_days * _DAY)
    temps = [temp for temp in find_temps(output) if temp.is_orphaned]
    found = [
        Removal("temporary", str(temp.path), "left over", temp.size, temp.remove, [temp.path])
        for temp in temps
    ]
    return [*map(_of_pack, old), *found], left


def _of_pack(pack: UnusedArray) -> Removal:
    name = f"{pack.path.parent / pack.path.stem[:_NAME_LENGTH]}...{pack.path.suffix}"
    reason = f"not used for {pack.age / _DAY:.0f} days"
    return Removal("cache", name, reason, pack.size, pack.remove, paths=[pack.path])
