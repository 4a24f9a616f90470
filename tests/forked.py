"""Commands as processes of their own that need not import everything again; SIGKILL is SIGKILL."""

import functools
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.fork_server import MAX_MESSAGE, Request


class _Server:
    """The client's side of `tests.fork_server`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._socket = ours
        self._statuses: dict[int, int] = {}
        self._lock = threading.Lock()

    def start(self, request: Request, stdout: int, stderr: int) -> int:
        with self._lock:
            socket.send_fds(self._socket, [pickle.dumps(request)], [stdout, stderr])
            while True:
                pid, status = self._receive()
                if status is None:
                    return pid

    def status_of(self, pid: int) -> int | None:
        """The wait status of a child that has ended."""
        with self._lock:
            while select.select([self._socket], [], [], 0)[0]:
                self._receive()
        return self._statuses.get(pid)

    def _receive(self) -> tuple[int, int | None]:
        message = self._socket.recv(MAX_MESSAGE)
        assert message, "the server of forks has ended"
        pid, status = pickle.loads(message)  # noqa: S301 -- from the server that this process started
        if status is not None:
            self._statuses[pid] = status
        return pid, status


def _environment() -> dict[str, str]:
    """What libraries read on import: no setting of the test that happens to be the first."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "MLPROJECT_", "OMP_"))
    }
    return kept | {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_DISABLE_TELEMETRY": "true"}


@functools.cache
def _server() -> _Server:
    return _Server()


class ForkedProcess:
    """``python -m MODULE ARGUMENTS``, with the part of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        new_session: bool = False,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Start the process.

        Args:
            module: Such as ``src.train``.
            arguments: Of the command.
            folder: Its working folder.
            environment: All of its environment variables.
            log: Where its standard output and error go; None for pipes that `communicate` reads.
            new_session: Whether it leads a session of its own.
            prepare: Called in the process before the command; an importable function.
        """
        self.args = [sys.executable, "-m", module, *arguments]
        self.returncode: int | None = None
        request = Request(module, arguments, str(folder), dict(environment), new_session, prepare)
        if log is not None:
            with log.open("a") as file:
                self.pid = _server().start(request, file.fileno(), file.fileno())
            return
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.pid = _server().start(request, out_end, err_end)
        os.close(out_end)
        os.close(err_end)
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8", errors="replace")
        self.stderr: IO[str] = os.fdopen(err, encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""
        status = _server().status_of(self.pid)
        if status is not None:
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: It still runs after ``timeout`` seconds.
        """
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.005)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read what it prints until it ends; return standard output and standard error."""
        found = {"stdout": "", "stderr": ""}

        def read(name: str) -> None:
            stream: IO[str] = getattr(self, name)
            if not stream.closed:
                found[name] = stream.read()
                stream.close()

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in found]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return found["stdout"], found["stderr"]

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


class Forked(ForkedProcess):
    """``python -m src.COMMAND OPTIONS`` with the environment of this process, its output in a log file."""

    def __init__(
        self, command: str, folder: Path, options: Sequence[str], prepare: Callable[[], None] | None = None
    ) -> None:
        """Start the command; see `ForkedProcess`."""
        environment = os.environ | {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        self.log = folder / f"{command}-{time.monotonic_ns()}.log"
        super().__init__(f"src.{command}", options, folder, environment, log=self.log, prepare=prepare)

    @property
    def is_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.returncode == -signal.SIGKILL
