"""Heartbeat tag: which process owns a run and when it was last alive.

With it, orphaned runs can be found after ``kill -9``.
"""

import json
import math
import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil

from ..errors import ConfigError
from ..utils.cli import warn
from .names import HEARTBEAT
from .store import reason

SECONDS = 60.0
"""Seconds between two heartbeats."""

_SECONDS_NAME = "MLPROJECT_HEARTBEAT_SECONDS"
_SAME_START = 2.0  # seconds; the system rounds its own boot time to a second


@dataclass(frozen=True)
class Heartbeat:
    """One heartbeat of a process.

    Attributes:
        host: The machine's name.
        boot: Identifies the boot of the machine and the PID namespace; containers have their own.
        pid: The process id.
        started: When the process started, in seconds since boot: setting the clock does not change it,
            and a process that reuses the pid has another value.
        time: When the heartbeat was made.
    """

    host: str
    boot: str
    pid: int
    started: float
    time: datetime

    @classmethod
    def now(cls) -> Self:
        """Return a heartbeat of this process."""
        process = psutil.Process()
        return cls(socket.gethostname(), _boot(), process.pid, _started(process), datetime.now(UTC))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Parse a tag; return None if it is something else or truncated."""
        try:
            values: dict[str, Any] = json.loads(text)
            time = datetime.fromisoformat(values["time"]).astimezone(UTC)
            pid, started = int(values["pid"]), float(values["started"])
            heartbeat = cls(str(values["host"]), str(values["boot"]), pid, started, time)
        except (ValueError, KeyError, TypeError, OverflowError):
            return None
        return heartbeat if pid > 0 and math.isfinite(started) else None

    def to_json(self) -> str:
        """Return the tag's value."""
        values = asdict(self) | {"time": self.time.isoformat(timespec="seconds")}
        return json.dumps(values | {"started": round(self.started, 2)})

    @property
    def is_from_here(self) -> bool:
        """Return whether this machine can see if the process is alive."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def age(self) -> float:
        """Return the age in seconds."""
        return (datetime.now(UTC) - self.time).total_seconds()

    def is_alive(self) -> bool:
        """Return whether the process is alive on this machine; True if that cannot be determined."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(_started(process) - self.started) < _SAME_START
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return _is_hidden(self.pid)
        except psutil.AccessDenied:
            return True


def _started(process: psutil.Process) -> float:
    return float(process.create_time() - psutil.boot_time())


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: the network card distinguishes machines with the same name
        return f"{uuid.getnode():x}"


def _is_hidden(pid: int) -> bool:
    """Return whether the process exists although this machine hides processes of other users."""
    try:
        os.kill(pid, 0)  # only checks
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def heartbeat_tag() -> dict[str, str]:
    """Return the heartbeat tag for this process."""
    return {HEARTBEAT: Heartbeat.now().to_json()}


def heartbeat_interval() -> float:
    """Return the seconds between two heartbeats: `SECONDS`, or the environment's value.

    Raises:
        ConfigError: The environment's value is not a number of seconds.
    """
    text = os.environ.get(_SECONDS_NAME, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ConfigError(f"{_SECONDS_NAME}: {text!r} is not a number of seconds")
    return seconds


class HeartbeatThread:
    """Renews the heartbeat tag in the background while the process works on the run."""

    def __init__(self, log: Callable[[Mapping[str, str]], None], seconds: float) -> None:
        """Start the thread; the first heartbeat follows after ``seconds``, since a run starts with one.

        Args:
            log: Sets tags of the run.
            seconds: Time between two heartbeats.
        """
        self._log, self._seconds = log, seconds
        self._has_warned = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self._log(heartbeat_tag())
            except Exception as error:  # of the store or a full disk: training continues or fails by itself
                if not self._has_warned and not self._stopping.is_set():
                    self._has_warned = True
                    warn(f"the run's heartbeat is not recorded: {reason(error)}; training continues")

    def stop(self) -> None:
        """Stop the thread, without waiting for a heartbeat that takes long."""
        self._stopping.set()
        self._thread.join(2)
