"""Delivers what a run has left in its journal."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from src.errors import StoreError, TrackingError, UserError
from src.tracking.delivery import Delivery, allowed_attempts
from src.tracking.finished_run import how_to_restore
from src.tracking.interrupted import clear_error
from src.tracking.journal import (
    ARTIFACT,
    FOLDER,
    MODEL,
    STATUS,
    TAGS,
    Item,
    Journal,
    is_held,
    items,
    journal_lock,
)
from src.tracking.names import ERROR
from src.tracking.outbox import in_order
from src.tracking.places import run_place
from src.tracking.store import http_retries, open_store, quiet_client, reason, shown_uri
from src.utils.signature import signature

_UNKNOWN_END = "the process ended without saying why; src.store sync delivered what it left"


@dataclass(frozen=True)
class Synced:
    """What was done.

    Attributes:
        run_id: The run, None where there was no journal.
        count: How many items were delivered.
        status: What the run's status is now.
    """

    run_id: str | None = None
    count: int = 0
    status: str = ""


@dataclass(frozen=True)
class Left:
    """A journal on disk.

    Attributes:
        results: The folder of its run.
        run_id: The run, None where the journal does not say.
        count: How many items it holds.
        has_end: Whether the end of the run is one of them.
        is_held: Whether a process delivers from it right now.
    """

    results: Path
    run_id: str | None
    count: int
    has_end: bool
    is_held: bool


def find_left(output: Path) -> list[Left]:
    """The journals of all runs below a folder; changes none, and reads none through a link."""
    found = []
    for folder in sorted(output.rglob(FOLDER)):
        with contextlib.suppress(FileNotFoundError):  # all has arrived meanwhile
            found.append(_look(folder.parent))
    return found


def _look(results: Path) -> Left:
    if _link_in(results) is not None:
        return Left(results, None, 0, False, False)
    held = is_held(results)
    try:
        journal = Journal.read(results, mend=False)
    except UserError:
        return Left(results, None, 0, False, held)
    has_end = any(item.kind == STATUS for item in journal.pending.values())
    return Left(results, journal.run_id, len(journal.pending), has_end, held)


def _link_in(results: Path) -> Path | None:
    """A link on the way to the journal of a run or in it, which leads to files of somebody else, or None."""
    folder = results / FOLDER
    for path in (results, folder):
        if path.is_symlink():
            return path
    return next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None)


def sync(results: Path) -> Synced:
    """Delivers everything that the journal in ``results`` says is missing.

    A run whose process died has no last status there; it is marked KILLED, for that is what it was.

    Args:
        results: The folder of the run, such as ``outputs/NAME``.

    Raises:
        UserError: It is no folder of a run, or holds what is another's.
        ClaimError: The store would have the run's files put somewhere else than the run's own are.
        TrackingError: The run is still going on, the store is not reachable, or refused something.
    """
    if (link := _link_in(results)) is not None:
        raise UserError(f"{link}: is a link, and nothing is delivered through one; name what it leads to")
    if not Journal.exists(results):
        if not (results / "checkpoints").is_dir():
            raise UserError(f"{results}: no folder of a run; outputs/NAME is one, with checkpoints in it")
        return Synced()
    with journal_lock(results), http_retries(0), quiet_client():
        journal = Journal.read(results)
        _check_own(results, journal)
        status = _open(journal)
        pending = sorted(journal.pending.values(), key=in_order)
        if status == "RUNNING" and not any(item.kind == STATUS for item in pending):
            pending += _unknown_end()
        count, status = _deliver(journal, pending, status)
        if status == "FINISHED":  # it may have been taken for dead while it was silent
            clear_error(journal.run_id)
        journal.remove()
    return Synced(journal.run_id, count, status)


def _check_own(results: Path, journal: Journal) -> None:
    """Refuses a journal of another run than the folder's, and items whose files are not in the journal.

    Raises:
        UserError: It is one.
    """
    owner = signature(results)
    if owner not in (None, journal.run_id):
        raise UserError(f"{results}: belongs to run {owner}, and its journal to run {journal.run_id}")
    for item in journal.pending.values():
        if item.kind in (ARTIFACT, MODEL):
            names = (str(item.content.get("name")), *Path(str(item.content.get("folder") or "x")).parts)
            if any(name in ("", ".", "..") or "/" in name or "\0" in name for name in names):
                raise UserError(f"{journal.folder}: item {item.number} names a file outside it: {names[0]!r}")


def _open(journal: Journal) -> str:
    """Opens the store and returns the status that it has for the run."""
    import mlflow

    try:
        open_store(must_exist=True)
        client = mlflow.MlflowClient()
        info = client.get_run(journal.run_id).info
        experiment = client.get_experiment(info.experiment_id)
    except StoreError as error:
        raise TrackingError(f"{error}. The run was recorded at {journal.store}") from None
    except mlflow.MlflowException as error:
        raise TrackingError(
            f"{shown_uri()} has no run {journal.run_id} ({reason(error)}); it was recorded at "
            f"{journal.store}: set MLFLOW_TRACKING_URI to that store"
        ) from None
    if info.lifecycle_stage != "active":
        raise TrackingError(f"run {journal.run_id} {how_to_restore(journal.run_id, experiment)}")
    run_place(journal.run_id, info.artifact_uri, experiment.experiment_id, experiment.artifact_location or "")
    return str(info.status)


def _unknown_end() -> list[Item]:
    killed = {"status": "KILLED", "end_time": None}
    return [Item(0, TAGS, {ERROR: _UNKNOWN_END}), Item(0, STATUS, killed)]


def _deliver(journal: Journal, pending: list[Item], status: str) -> tuple[int, str]:
    delivery, count, refused = Delivery(journal.run_id, journal.folder), 0, list[str]()
    for item in pending:
        try:
            delivery.send(item)
        except Exception as error:  # whatever the store raises
            if allowed_attempts(error) is None:
                raise TrackingError(
                    f"{shown_uri()}: {reason(error)}; {items(count)} delivered, "
                    f"{len(journal.pending)} left: sync again"
                ) from None
            refused.append(f"{item.kind}: {reason(error)}")
        else:
            count += item.number > 0
            status = item.content["status"] if item.kind == STATUS else status
            journal.done(item)
    if refused:
        raise TrackingError(
            f"{shown_uri()} refuses {items(len(refused))} of run {journal.run_id}, the first: {refused[0]}; "
            f"{count} delivered, and what is refused stays in {journal.folder}"
        )
    return count, status
