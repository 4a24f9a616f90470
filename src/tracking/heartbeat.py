"""A tag of a run that says which process works on it and when it last did; `kill -9` cannot take it away."""

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
"""Between two heartbeats."""

_SECONDS_NAME = "MLPROJECT_HEARTBEAT_SECONDS"
_SAME_START = 2.0  # the system rounds the time of its own start to a second


@dataclass(frozen=True)
class Beat:
    """One heartbeat.

    Attributes:
        host: The machine's name.
        boot: Which start of the machine, and which space of process ids: containers have their own.
        pid: The process.
        started: When the process did, in seconds since the machine did: setting the clock changes
            nothing, and another process that has got the same pid has another start.
        time: When this was.
    """

    host: str
    boot: str
    pid: int
    started: float
    time: datetime

    @classmethod
    def now(cls) -> Self:
        """Of this process."""
        process = psutil.Process()
        return cls(socket.gethostname(), _boot(), process.pid, _started(process), datetime.now(UTC))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Reads a tag back; None where it is something else, or cut off."""
        try:
            values: dict[str, Any] = json.loads(text)
            time = datetime.fromisoformat(values["time"]).astimezone(UTC)
            pid, started = int(values["pid"]), float(values["started"])
            beat = cls(str(values["host"]), str(values["boot"]), pid, started, time)
        except (ValueError, KeyError, TypeError, OverflowError):
            return None
        return beat if pid > 0 and math.isfinite(started) else None

    def to_json(self) -> str:
        """The tag's value."""
        values = asdict(self) | {"time": self.time.isoformat(timespec="seconds")}
        return json.dumps(values | {"started": round(self.started, 2)})

    @property
    def is_of_here(self) -> bool:
        """Whether this machine can tell if the process lives."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    @property
    def age(self) -> float:
        """In seconds."""
        return (datetime.now(UTC) - self.time).total_seconds()

    def lives(self) -> bool:
        """Whether its process, of this machine, is there; in doubt it is."""
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
    except OSError:  # not Linux: the network card tells two machines of one name apart
        return f"{uuid.getnode():x}"


def _is_hidden(pid: int) -> bool:
    """Whether another user's process is there all the same, on a machine that does not show them."""
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def beat() -> dict[str, str]:
    """The tag as it is now."""
    return {HEARTBEAT: Beat.now().to_json()}


def seconds_between() -> float:
    """How often: each `SECONDS`, unless the environment says otherwise.

    Raises:
        ConfigError: It says something else than seconds.
    """
    text = os.environ.get(_SECONDS_NAME, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ConfigError(f"{_SECONDS_NAME}: {text!r} is no number of seconds")
    return seconds


class Heartbeat:
    """Renews the tag beside the training loop, for as long as the process works on the run."""

    def __init__(self, log: Callable[[Mapping[str, str]], None], seconds: float) -> None:
        """Starts; the first one is due after ``seconds``, for a run is started with one.

        Args:
            log: Sets tags of the run.
            seconds: Between two.
        """
        self._log, self._seconds = log, seconds
        self._is_told = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._is_over.wait(self._seconds):
            try:
                self._log(beat())
            except Exception as error:  # of the store, of a full disk: training goes on, or says so itself
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._is_told and not self._is_over.is_set():
            self._is_told = True
            warn(f"the run's heartbeat is not recorded: {reason(error)}; training goes on")

    def stop(self) -> None:
        """Ends; one that takes long is not waited for."""
        self._is_over.set()
        self._thread.join(2)
