"""A process that has imported the heavy libraries and forks a command for each request.

A fresh ``python -m src.train`` spends ten seconds of processor time on imports; a fork spends none. The
child is a process of its own: its signals, exit status, files, ``atexit`` functions and threads are real.
"""

import contextlib
import os
import pickle
import runpy
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch

PRELOAD = ["mlflow", "mlflow.pytorch", "mlflow.store.tracking.sqlalchemy_store", "alembic.command"]
PRELOAD += ["mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.file_store"]
PRELOAD += [
    "torch",
    "torch.export",
    "sklearn.metrics",
    "scipy.stats",
    "matplotlib.figure",
    "src.utils.torchvision_import",
]
PRELOAD += [
    "src.experiment.session",
    "src.promotion.report",
    "src.data.dataset",
    "src.evaluation.score_plots",
]
MAX_MESSAGE = 2**20  # bytes


@dataclass(frozen=True)
class Request:
    """A command to run.

    Attributes:
        module: What ``python -m`` would run.
        arguments: Its arguments.
        folder: Its working folder.
        environment: All of its environment variables.
        new_session: Whether it leads a session of its own.
        prepare: Called in the process before the command.
    """

    module: str
    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    new_session: bool = False
    prepare: Callable[[], None] | None = None


def serve(connection: socket.socket) -> Request:
    """Fork a child for each request; return in the child, exit when the client closes its end.

    The client is sent ``(pid, None)`` for each child at its start, and ``(pid, wait status)`` at its end.
    """
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    while True:
        select.select([connection.fileno(), woken], [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection.send(pickle.dumps(ended))
        if not select.select([connection], [], [], 0)[0]:
            continue
        message, streams, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 2)
        if not message:
            sys.exit()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (woken, wakes, connection.detach()):
                os.close(descriptor)
            for number, stream in enumerate(streams, start=1):
                os.dup2(stream, number)
                os.close(stream)
            request: Request = pickle.loads(message)  # noqa: S301 -- from the test that started this server
            return request
        for stream in streams:
            os.close(stream)
        connection.send(pickle.dumps((pid, None)))


def run(request: Request) -> None:
    """Do in this process what ``python -m MODULE ARGUMENTS`` does."""
    if request.new_session:
        os.setsid()
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    if threads := os.environ.get("OMP_NUM_THREADS"):  # torch reads it when it is imported, which was before
        torch.set_num_threads(int(threads))
    sys.argv, sys.path[0] = [request.module, *request.arguments], request.folder
    if request.prepare is not None:
        request.prepare()
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in PRELOAD:
        import_module(name)
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
