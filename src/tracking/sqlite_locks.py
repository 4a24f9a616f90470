"""Wait for an SQLite database that another process has locked, instead of failing after MLflow's 20 seconds.

A backup or ``VACUUM`` can hold the database for minutes. SQLite's own wait runs in C, where no signal gets
through, so it is cut into pieces of half a second; between them Ctrl-C ends the process as usual.
"""

import functools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Engine, event

from ..utils.cli import warn
from ..utils.runtime import is_ending, raise_pending

PATIENCE = 3600.0
"""Seconds that one statement waits for the lock."""

_HURRY = 5.0  # after Ctrl-C or SIGTERM, when the user waits for the process to end
_IN_TRANSACTION = 20.0  # as MLflow's own: two processes must not wait for each other forever
_PIECE = 0.5
_WARN_AFTER = 3.0

T = TypeVar("T")


@functools.cache
def wait_for_locks() -> None:
    """Make every SQLite connection that SQLAlchemy opens in this process wait for locks."""
    event.listen(Engine, "do_connect", _connect)


@contextmanager
def waiting_ends() -> Iterator[None]:
    """Undo `wait_for_locks` at the end of the block, if it was called within, for new connections."""
    was_called = event.contains(Engine, "do_connect", _connect)
    try:
        yield
    finally:
        if not was_called and event.contains(Engine, "do_connect", _connect):
            event.remove(Engine, "do_connect", _connect)
            wait_for_locks.cache_clear()


def _connect(dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:  # noqa: ANN401
    if dialect.name == "sqlite":
        options |= {"factory": _Connection, "timeout": _PIECE}


class _Connection(sqlite3.Connection):
    def __init__(self, database: str, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(database, *args, **options)
        self.database = database

    def cursor(self, factory: Any = None) -> Any:  # noqa: ANN401 -- as typeshed has it
        return super().cursor(factory or _Cursor)

    def commit(self) -> None:
        _wait(super().commit, PATIENCE, self.database)


class _Cursor(sqlite3.Cursor):
    connection: _Connection

    def execute(self, sql: str, parameters: Any = ()) -> Any:  # noqa: ANN401
        if sql.startswith("PRAGMA busy_timeout"):  # of MLflow's, in each session
            return self
        return self._wait(lambda: super(_Cursor, self).execute(sql, parameters))

    def executemany(self, sql: str, parameters: Any) -> Any:  # noqa: ANN401
        return self._wait(lambda: super(_Cursor, self).executemany(sql, parameters))

    def _wait(self, call: Callable[[], T]) -> T:
        # A transaction may hold the lock that the other process waits for; a commit does not.
        patience = _IN_TRANSACTION if self.connection.in_transaction else PATIENCE
        return _wait(call, patience, self.connection.database)


class _Warning:
    """Whether the user was warned of the current wait."""

    is_shown = False


def _wait(call: Callable[[], T], patience: float, database: str) -> T:
    """Call until the database is not locked; a call that fails for a lock has changed nothing."""
    started, ending_at, has_waited = time.monotonic(), None, False
    while True:
        try:
            result = call()
        except sqlite3.OperationalError as error:
            now = time.monotonic()
            if is_ending():
                ending_at = ending_at or now
                patience = min(patience, ending_at - started + _HURRY)
            if not _is_locked(error):
                raise
            if now - started >= patience:
                raise_pending()
                raise
            if now - started >= _WARN_AFTER and not _Warning.is_shown:
                _Warning.is_shown = True
                warn(
                    f"{database} is locked by another process (a backup? `fuser -v {database}` shows it); "
                    "waiting until it is released"
                )
            has_waited = True
            time.sleep(_PIECE / 10)
        else:
            if has_waited:
                _Warning.is_shown = False
            return result


def _is_locked(error: sqlite3.OperationalError) -> bool:
    # With a write-ahead log, waiting does not help against an outdated snapshot.
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY and code != sqlite3.SQLITE_BUSY_SNAPSHOT
