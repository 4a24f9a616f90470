"""Delivery of a run's records to a server in the background, also after the server was unreachable."""

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TrackingError
from ..utils.cli import command, warn
from ..utils.io import atomic_link
from .delivery import (
    COMPARISON,
    ROUNDS,
    Delivery,
    allowed_attempts,
    delivery_order,
    is_answer,
    is_finished,
    record_comparison,
)
from .journal import ARTIFACT, MODEL, STATUS, Item, Journal, items, journal_lock
from .names import FINISHED, KILLED, LOGGED_MODEL
from .store import reason, shown_uri

_MAX_PAUSE, _MAX_LAST_PAUSE = 30.0, 5.0
_PATIENCE_NAME = "MLPROJECT_SERVER_PATIENCE"
_HURRY = 5.0  # seconds that a user waits after Ctrl-C if the server is unreachable
_SLOW = 10.0  # and if it answers, but nothing more arrives


class UndeliveredError(TrackingError):
    """The run is complete on disk, but not in the store."""


class Outbox:
    """The items of one run: each is written to disk first, and a thread delivers them in order.

    Small items go before files. At the end the server is asked for what it holds, what it lacks is sent
    again, and the status FINISHED goes last, only if nothing is missing.
    """

    def __init__(self, results: Path, run_id: str) -> None:
        """Open the journal in ``results``, with the items that an earlier process has left.

        Raises:
            ConfigError: The environment's patience is not a number of seconds.
            TrackingError: Another process delivers from the journal.
        """
        self.results, self._patience = results, read_patience()
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(journal_lock(results))
        self._journal = Journal.begin(results, run_id, shown_uri())
        self._delivery = Delivery(run_id, self._journal.folder)
        self._changed = threading.Condition()
        self._waiting = {item.number: item for item in self._journal.unsent}
        self._sending: Item | None = None
        self._sent_at = 0.0
        self._refused: list[str] = []
        self._failures, self._pause_until, self._max_pause = 0, 0.0, _MAX_PAUSE
        self._failing_since: float | None = None
        self._has_warned_gone = self._has_warned_refused = False
        self._arrived_at = time.monotonic()
        self._is_closed = False
        self._rounds = 0
        self.has_status = False
        # A daemon: its items are on disk, so the process never has to wait for it.
        self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
        self._thread.start()

    def put(self, kind: str, content: dict[str, Any], *, is_doubtful: bool = False) -> None:
        """Add an item, which the store may have already, and return once it is on disk.

        Raises:
            OSError: It could not be written.
        """
        with self._changed:
            if not self._is_closed:  # system metrics may come late
                item = self._journal.add(self._journal.reserve(), kind, content)
                item.is_doubtful = is_doubtful
                self._enqueue(item)

    def put_file(self, path: Path, folder: str | None) -> None:
        """Add a file in its current state; an earlier version that still waits is no longer sent."""
        with self._changed:
            number = self._journal.reserve(with_folder=True)
            atomic_link(path, self._journal.folder_of(number) / path.name)
            self._enqueue(self._journal.add(number, ARTIFACT, {"name": path.name, "folder": folder or ""}))

    def put_model(self, save: Callable[[Path], None], step: int) -> None:
        """Add a model.

        Args:
            save: Writes the model into a folder that does not exist yet.
            step: The epoch of the weights.
        """
        with self._changed:
            number = self._journal.reserve(with_folder=True)
        save(self._journal.folder_of(number) / LOGGED_MODEL)
        with self._changed:
            content = {"name": LOGGED_MODEL, "step": step}
            self._enqueue(self._journal.add(number, MODEL, content))

    def put_status(self, status: str) -> None:
        """Add the final status of the run, once; if the disk is full, it is sent without being written."""
        if self.has_status:
            return
        self.has_status = True
        content = {"status": status, "end_time": int(time.time() * 1000)}
        with self._changed:
            number = self._journal.reserve()
            try:
                item = self._journal.add(number, STATUS, content)
            except OSError:
                item = Item(number, STATUS, content)
            self._enqueue(item)

    def _enqueue(self, item: Item) -> None:
        self._waiting[item.number] = item
        self._drop_older(item.target)
        self._changed.notify_all()

    def _drop_older(self, target: str | None) -> None:
        """Drop all but the newest of the waiting or refused versions of a file or tag."""
        versions = [item for item in self._journal.pending.values() if target and item.target == target]
        for item in sorted(versions, key=delivery_order)[:-1]:
            if item is not self._sending:
                self._waiting.pop(item.number, None)
                self._journal.done(item)

    def _work(self) -> None:
        while (item := self._next()) is not None:
            lacking: list[Item] = []
            failure: Exception | None = None
            try:
                if item.kind == COMPARISON:
                    lacking = self._delivery.lacks(item.content["sent"])
                else:
                    self._delivery.send(item)
            except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
                failure = error
            with self._changed:
                if self._is_closed:
                    return  # too late: a sync may have started
                if failure is not None:
                    self._failed(item, failure)
                else:
                    self._arrived(item)
                    if item.kind == COMPARISON:
                        self._compared(item.content["sent"], lacking)
                self._changed.notify_all()

    def _next(self) -> Item | None:
        """Wait for the next item; return None at the end."""
        with self._changed:
            self._sending = None
            while not self._is_closed:
                pause, due = self._pause_until - time.monotonic(), self._due()
                if due and pause <= 0:
                    self._sending, self._sent_at = min(due, key=delivery_order), time.monotonic()
                    if self._sending.kind == COMPARISON:
                        self._sending.content["sent"] = self._journal.sent
                    return self._sending
                self._changed.wait(pause if due else None)
            return None

    def _due(self) -> list[Item]:
        """Return what may be sent: FINISHED only once the server holds all results."""
        due = list(self._waiting.values())
        if any(map(is_finished, due)) and any(item.is_result for item in self._journal.pending.values()):
            return [item for item in due if not is_finished(item)]
        return due

    def _arrived(self, item: Item) -> None:
        self._answered()
        self._arrived_at = time.monotonic()
        self._waiting.pop(item.number, None)
        self._sending = None
        if item.kind != COMPARISON:
            self._journal.arrived(item)
            self._drop_older(item.target)  # a newer version may have been added meanwhile

    def _compared(self, sent: list[Item], lacking: list[Item]) -> None:
        record_comparison(self._journal, sent, lacking)
        self._rounds += 1
        if lacking and self._rounds <= ROUNDS:
            self._refused.clear()
            self._enqueue_all()
        elif lacking:
            self._refused.append(f"{lacking[0].kind}: the server took it and does not hold it")

    def _enqueue_all(self) -> None:
        """Enqueue everything again, also refused items, and a comparison with what the server then holds."""
        self._waiting |= {item.number: item for item in self._journal.unsent}
        self._waiting[0] = Item(0, COMPARISON, {})

    def _answered(self) -> None:
        if self._has_warned_gone:
            warn(f"the server {shown_uri()} answers again; what it missed is being delivered")
        self._failures, self._failing_since, self._has_warned_gone = 0, None, False

    def _failed(self, item: Item, error: Exception) -> None:
        item.attempts, item.is_doubtful = item.attempts + 1, True
        self._sending = None
        allowed = allowed_attempts(error)
        if allowed == 1 and is_answer(error):
            self._answered()
        else:
            self._failing_since = self._failing_since or time.monotonic()
        if allowed is None and self._failures and not self._has_warned_gone:  # a single failure may be chance
            self._has_warned_gone = True
            self._warn_gone()
        if allowed is not None and item.attempts >= allowed:
            self._refuse(item, error)
        else:
            self._pause_until = time.monotonic() + min(2.0 ** min(self._failures, 9), self._max_pause)
            self._failures += 1
        self._drop_older(item.target)

    def _refuse(self, item: Item, error: Exception) -> None:
        """Give up on an item; it stays in the journal, where `sync` finds it."""
        self._waiting.pop(item.number)
        self._refused.append(f"{item.kind}: {reason(error).rstrip('.')}")
        if not self._has_warned_refused:
            self._has_warned_refused = True
            warn(f"{shown_uri()} refuses what the run records ({self._refused[0]}); training continues")

    def _warn_gone(self) -> None:
        seconds = time.monotonic() - (self._failing_since or time.monotonic())
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
        warn(
            f"the server {shown_uri()} has not responded since {since}; training continues. All records are "
            f"saved in {self.results} and will be sent when it responds"
        )

    def close(self, status: str) -> None:
        """Deliver what is left while the server takes it, and stop.

        Args:
            status: How the run ended; unless it is FINISHED, a user may wait for the process to end.

        Raises:
            UndeliveredError: Something was not delivered; it is in the journal.
        """
        started, has_warned = time.monotonic(), False
        with self._changed:
            # The last attempt includes everything.
            self._refused.clear()
            self._enqueue_all()
            self._pause_until, self._max_pause = 0.0, _MAX_LAST_PAUSE
            self._changed.notify_all()
            while self._due() and not self._is_hopeless(started, status):
                self._changed.wait(0.1)
                if not has_warned and time.monotonic() - started > 2:
                    has_warned = True
                    warn(f"delivering what is left to {shown_uri()} ({items(len(self._journal.unsent))}) ...")
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(1)
        self._end()

    def _is_hopeless(self, started: float, status: str) -> bool:
        now = time.monotonic()
        if status == KILLED and now - max(started, self._arrived_at) > _SLOW:
            return True
        patience = self._patience if status == FINISHED else _HURRY
        # Anything but a large file that takes long means that the server hangs.
        is_stuck = self._sending is not None and self._sending.kind not in (ARTIFACT, MODEL)
        since = self._failing_since or (self._sent_at if is_stuck else None)
        return since is not None and now - max(started, since) > patience

    def _end(self) -> None:
        with self._changed:
            unsent = ({item.number for item in self._journal.unsent} | {*self._waiting}) - {0}
            is_whole = not unsent and not self._journal.pending
            if is_whole:
                self._journal.remove()
            self._lock.close()
        if not is_whole:
            raise UndeliveredError(self._message(len(unsent)))

    def _message(self, count: int) -> str:
        uri, folder = shown_uri(), shlex.quote(str(self.results))
        what = f"{items(count)} of the run not delivered to {uri}"
        if not count:
            what = f"what the run sent to {uri} was not found there, or not looked for to the end"
        why = f"; refused: {self._refused[0]}" if self._refused else ""
        return (
            f"{what}{why}. Everything is on disk in {self.results}; MLFLOW_TRACKING_URI={uri} "
            f"{command('store sync')} {folder} delivers it"
        )


def read_patience() -> float:
    """Return how many seconds to wait for an unreachable server at the start and end of a run.

    Raises:
        ConfigError: The environment's value is not a number of seconds.
    """
    text = os.environ.get(_PATIENCE_NAME, "60")
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{_PATIENCE_NAME}: {text!r} is not a number of seconds") from None
