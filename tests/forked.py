"""Commands as processes of their own that need not import everything again.

They are forked from a server that has imported what they need and opened nothing; SIGKILL is SIGKILL.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

_PRELOAD = ["mlflow", "torch", "sklearn.metrics", "scipy.stats", "src.promotion.show", "mlflow.pytorch"]
_PRELOAD += ["src.data.dataset", "src.experiment.session", "tests.forked", "torch.export", "alembic.command"]
_PRELOAD += ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOAD)


class Forked:
    """A command that runs, with the part of `subprocess.Popen` that tests need."""

    def __init__(
        self, command: str, folder: Path, options: Sequence[str], prepare: Callable[[], None] | None = None
    ) -> None:
        """Starts ``python -m src.COMMAND OPTIONS``.

        Args:
            command: Such as ``train``.
            folder: Its working folder.
            options: Of the command.
            prepare: Called in the process before the command.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        args = (command, folder, options, uri, prepare)
        self._process = _context.Process(target=_run, args=args)
        self._process.start()
        self.log = folder / f"{command}-{self._process.pid}.log"

    @property
    def is_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self._process.exitcode == -signal.SIGKILL

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.log), timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()


def _run(
    command: str, folder: Path, options: Sequence[str], uri: str | None, prepare: Callable[[], None] | None
) -> None:
    os.chdir(folder)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    if prepare is not None:
        prepare()
    log = Path(f"{command}-{os.getpid()}.log").open("w")  # noqa: SIM115 -- open until the process ends
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        status = import_module(f"src.{command}").main(options)
    log.close()
    sys.exit(status)
