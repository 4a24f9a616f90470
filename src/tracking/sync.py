"""Delivers what a run has left in its journal."""

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import StoreError, TrackingError, UserError
from ..utils.signature import signature
from .delivery import ROUNDS, Delivery, allowed_attempts, in_order, insist, is_finished
from .finished_run import how_to_restore
from .held import AnswerError, read_experiment, read_whole_run
from .interrupted import clear_error
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
from .names import ERROR
from .places import run_place
from .store import http_retries, open_store, quiet_client, reason, shown_uri

_PATIENCE = 10.0  # seconds that each item waits for a server which answers now and then
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
        count: How many items wait to be sent, or are damaged.
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
    return Left(results, journal.run_id, len(journal.unsent) + len(journal.damaged), has_end, held)


def _link_in(results: Path) -> Path | None:
    """A link on the way to the journal of a run or in it, which leads to files of somebody else, or None."""
    folder = results / FOLDER
    for path in (results, folder):
        if path.is_symlink():
            return path
    return next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None)


def sync(results: Path) -> Synced:
    """Delivers everything that the journal in ``results`` says is missing, and looks whether it is there.

    A run whose process died has no last status there; it is marked KILLED, for that is what it was.

    Args:
        results: The folder of the run, such as ``outputs/NAME``.

    Raises:
        UserError: It is no folder of a run, or holds what is another's.
        ClaimError: The store would have the run's files put somewhere else than the run's own are.
        TrackingError: The run is still going on, the store is not reachable, refused something or does not
            hold what it took, or a line of the journal is damaged; the run is then not FINISHED.
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
        count, status = _deliver(journal, _open(journal))
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
        info = insist(partial(read_whole_run, client, journal.run_id), _PATIENCE).info
        experiment = insist(partial(read_experiment, client, info.experiment_id), _PATIENCE)
    except StoreError as error:
        raise TrackingError(f"{error}. The run was recorded at {journal.store}") from None
    except (mlflow.MlflowException, AnswerError) as error:
        if allowed_attempts(error) is None:
            raise TrackingError(f"{shown_uri()}: {reason(error)}; sync again") from None
        raise TrackingError(
            f"{shown_uri()} has no run {journal.run_id} ({reason(error)}); it was recorded at "
            f"{journal.store}: set MLFLOW_TRACKING_URI to that store"
        ) from None
    if info.lifecycle_stage != "active":
        raise TrackingError(f"run {journal.run_id} {how_to_restore(journal.run_id, experiment)}")
    run_place(journal.run_id, info.artifact_uri, experiment.experiment_id, experiment.artifact_location or "")
    return str(info.status)


def _end_of(journal: Journal, status: str) -> list[Item]:
    """How the run ended where its process did not say so; a damaged line may have."""
    if status != "RUNNING" or journal.damaged or any(i.kind == STATUS for i in journal.pending.values()):
        return []
    killed = {"status": "KILLED", "end_time": None}
    return [Item(0, TAGS, {ERROR: _UNKNOWN_END}), Item(0, STATUS, killed)]


def _deliver(journal: Journal, status: str) -> tuple[int, str]:
    """Sends everything, compares, sends what is missing again, and the status FINISHED last."""
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
    """How many were taken, and why others were refused."""
    count, refused = 0, list[str]()
    for item in sorted(some, key=in_order):
        try:
            insist(partial(delivery.send, item), _PATIENCE)
        except Exception as error:  # whatever the store raises
            _check_reached(error, journal, count)
            refused.append(f"{item.kind}: {reason(error)}")
        else:
            if item.number:  # what the process itself has left
                count += 1
                journal.arrived(item)
    return count, refused


def _compare(delivery: Delivery, journal: Journal) -> list[Item]:
    """What was sent and is not at the server; all else is done."""
    sent = journal.sent
    try:
        lacking = insist(partial(delivery.lacks, sent), _PATIENCE) if sent else []
    except Exception as error:  # whatever the store raises
        _check_reached(error, journal, 0)
        raise TrackingError(f"{shown_uri()}: what it holds cannot be read: {reason(error)}") from None
    for item in sent:
        if item in lacking:
            item.is_sent, item.is_doubtful = False, True
        else:
            journal.done(item)
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
            f"{journal.where_damaged}; {count} delivered, and the run is not FINISHED. python -m src.train "
            f"--resume {journal.run_id} records it again from its folder; or delete the line and sync again"
        )
    return f"{what}; {count} delivered, and what is left stays in {journal.folder}"
