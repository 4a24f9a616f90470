"""Delivery of what a run has left in its journal, by ``python -m src.store sync``."""

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow import MlflowException

from ..errors import StoreError, TrackingError, UserError
from ..utils.cli import command
from ..utils.io import read_run_id
from .delivery import (
    ROUNDS,
    AnswerError,
    Delivery,
    allowed_attempts,
    delivery_order,
    is_finished,
    read_experiment_checked,
    read_run_checked,
    record_comparison,
    retry_while_unreachable,
)
from .journal import (
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
from .names import CHECKPOINTS, ERROR, FINISHED, KILLED, RUNNING
from .store import http_retries, mlflow_client, open_store, quiet_client, reason, shown_uri
from .stored_run import StoredRun, clear_error, restore_hint

_PATIENCE = 10.0  # seconds that each item waits for a server that answers only sometimes
_UNKNOWN_END = "the process ended without a final status; src.store sync delivered its remaining results"


@dataclass(frozen=True)
class PendingDelivery:
    """A journal on disk.

    Attributes:
        results: The folder of its run.
        run_id: The run, None if the journal does not name it.
        count: How many items are unsent or damaged.
        has_end: Whether the end of the run is one of them.
        is_held: Whether a process delivers from it now.
    """

    results: Path
    run_id: str | None
    count: int
    has_end: bool
    is_held: bool


def find_pending(output: Path) -> list[PendingDelivery]:
    """Return the journals of all runs below a folder, without changing them or following links."""
    found = []
    for folder in sorted(output.rglob(FOLDER)):
        with contextlib.suppress(FileNotFoundError):  # everything was delivered meanwhile
            found.append(_inspect(folder.parent))
    return found


def _inspect(results: Path) -> PendingDelivery:
    if _link_in(results) is not None:
        return PendingDelivery(results, None, 0, False, False)
    held = is_held(results)
    try:
        journal = Journal.read(results, repair=False)
    except UserError:
        return PendingDelivery(results, None, 0, False, held)
    has_end = any(item.kind == STATUS for item in journal.pending.values())
    return PendingDelivery(results, journal.run_id, len(journal.unsent) + len(journal.damaged), has_end, held)


def _link_in(results: Path) -> Path | None:
    """Return a link on the path to a run's journal or in it, which leads to foreign files, or None."""
    folder = results / FOLDER
    for path in (results, folder):
        if path.is_symlink():
            return path
    return next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None)


def sync(results: Path) -> str:
    """Deliver everything in the journal in ``results``, check that the store holds it, and print the result.

    A run whose process died has no final status in the journal and is marked KILLED.

    Args:
        results: The folder of the run, such as ``outputs/NAME``.

    Returns:
        What was delivered, as a sentence.

    Raises:
        UserError: It is not the folder of a run, or holds the journal of another run.
        ClaimError: The store points to a folder that does not belong to the run.
        TrackingError: The run is in progress, the store is unreachable, refused something or does not hold
            what it confirmed, or a line of the journal is damaged; the run is then not FINISHED.
    """
    if (link := _link_in(results)) is not None:
        raise UserError(f"{link}: is a link, and nothing is delivered through one; name what it leads to")
    if not Journal.exists(results):
        if not (results / CHECKPOINTS).is_dir():
            raise UserError(f"{results}: not the folder of a run, such as outputs/NAME with its checkpoints")
        return f"{results}: nothing is missing"
    with journal_lock(results), http_retries(0), quiet_client():
        journal = Journal.read(results)
        _check_own(results, journal)
        count, status = _deliver(journal, _read_status(journal))
        if status == FINISHED:  # it may have been marked KILLED while it was silent
            clear_error(journal.run_id)
        journal.remove()
    result = f"{items(count)} delivered to" if count else "nothing is missing at"
    return f"run {journal.run_id}: {result} {shown_uri()}; the run is {status}"


def _check_own(results: Path, journal: Journal) -> None:
    """Check that the journal is of the folder's run, and that its items name only files inside it."""
    owner = read_run_id(results)
    if owner not in (None, journal.run_id):
        raise UserError(f"{results}: belongs to run {owner}, and its journal to run {journal.run_id}")
    for item in journal.pending.values():
        if item.kind in (ARTIFACT, MODEL):
            names = (str(item.content.get("name")), *Path(str(item.content.get("folder") or "x")).parts)
            if any(name in ("", ".", "..") or "/" in name or "\0" in name for name in names):
                raise UserError(f"{journal.folder}: item {item.number} names a file outside it: {names[0]!r}")


def _read_status(journal: Journal) -> str:
    """Open the store, check that it has the run, and return the run's status."""
    try:
        open_store(must_exist=True)
        client = mlflow_client()
        run = retry_while_unreachable(partial(read_run_checked, client, journal.run_id), _PATIENCE)
        read_experiment = partial(read_experiment_checked, client, run.info.experiment_id)
        experiment = retry_while_unreachable(read_experiment, _PATIENCE)
    except StoreError as error:
        raise TrackingError(f"{error}. The run was recorded at {journal.store}") from None
    except (MlflowException, AnswerError) as error:
        if allowed_attempts(error) is None:
            raise TrackingError(f"{shown_uri()}: {reason(error)}; sync again") from None
        raise TrackingError(
            f"{shown_uri()} has no run {journal.run_id} ({reason(error)}); it was recorded at "
            f"{journal.store}: set MLFLOW_TRACKING_URI to that store"
        ) from None
    if run.info.lifecycle_stage != "active":
        raise TrackingError(f"run {journal.run_id} {restore_hint(journal.run_id, experiment)}")
    StoredRun.from_mlflow(run, experiment).artifact_folder()  # refuses a folder that is not the run's own
    return str(run.info.status)


def _end_of(journal: Journal, status: str) -> list[Item]:
    """Return the end KILLED of a run whose process recorded none; a damaged line may hold another end."""
    if status != RUNNING or journal.damaged or any(i.kind == STATUS for i in journal.pending.values()):
        return []
    killed = {"status": KILLED, "end_time": None}
    return [Item(0, TAGS, {ERROR: _UNKNOWN_END}), Item(0, STATUS, killed)]


def _deliver(journal: Journal, status: str) -> tuple[int, str]:
    """Send everything, compare, send what is missing again, and send the status FINISHED last."""
    delivery, count, end = Delivery(journal.run_id, journal.folder), 0, _end_of(journal, status)
    ends = end or [item for item in journal.pending.values() if item.kind == STATUS]
    for _ in range(ROUNDS + 1):
        unfinished = [item for item in journal.unsent if not is_finished(item)]
        sent, refused = _send(delivery, journal, unfinished + end)
        count, end = count + sent, []
        if not (lacking := _compare(delivery, journal)):
            break
    if refused or lacking or journal.damaged:
        raise TrackingError(_what_is_left(journal, refused, lacking, count))
    sent, refused = _send(delivery, journal, journal.unsent)
    if refused:
        raise TrackingError(_what_is_left(journal, refused, [], count))
    return count + sent, ends[-1].content["status"] if ends else status


def _send(delivery: Delivery, journal: Journal, some: list[Item]) -> tuple[int, list[str]]:
    """Send items; return how many were confirmed, and why others were refused."""
    count, refused = 0, list[str]()
    for item in sorted(some, key=delivery_order):
        try:
            retry_while_unreachable(partial(delivery.send, item), _PATIENCE)
        except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
            _check_reached(error, journal, count)
            refused.append(f"{item.kind}: {reason(error)}")
        else:
            if item.number:  # not the end that `_end_of` adds
                count += 1
                journal.arrived(item)
    return count, refused


def _compare(delivery: Delivery, journal: Journal) -> list[Item]:
    """Return the confirmed items that the server does not hold; the others are done."""
    sent = journal.sent
    try:
        lacking = retry_while_unreachable(partial(delivery.lacks, sent), _PATIENCE) if sent else []
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        _check_reached(error, journal, 0)
        raise TrackingError(f"{shown_uri()}: what it holds cannot be read: {reason(error)}") from None
    record_comparison(journal, sent, lacking)
    return lacking


def _check_reached(error: Exception, journal: Journal, count: int) -> None:
    if allowed_attempts(error) is None:
        left = len(journal.unsent)
        raise TrackingError(
            f"{shown_uri()}: {reason(error)}; {items(count)} delivered, {left} left: sync again"
        ) from None


def _what_is_left(journal: Journal, refused: list[str], lacking: list[Item], count: int) -> str:
    if refused:
        what = f"{shown_uri()} refuses {items(len(refused))} of run {journal.run_id}, the first: {refused[0]}"
    elif lacking:
        what = (
            f"{shown_uri()} takes {items(len(lacking))} of run {journal.run_id} and does not hold them, the "
            f"first: {lacking[0].kind}; is it the tracking server that answers there?"
        )
    else:
        return (
            f"{journal.where_damaged}; {count} delivered, and the run is not FINISHED. {command('train')} "
            f"--resume {journal.run_id} records it again from its folder; or delete the line and sync again"
        )
    return f"{what}; {count} delivered, and what is left stays in {journal.folder}"
