"""Processes that run a command, and may kill themselves in the midst of it.

They are forked from a server that has imported everything and opened nothing, which spares each the
seconds of imports; they are processes of their own all the same, and SIGKILL is SIGKILL.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOAD = ["mlflow", "torch", "sklearn.metrics", "scipy.stats", "src.promotion.show", "mlflow.pytorch"]
_PRELOAD += ["src.data.dataset", "tests.promotion.processes", "torch.export", "alembic.command"]
_PRELOAD += ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
_WRITES = ["create_registered_model", "create_model_version", "update_model_version", "set_model_version_tag"]
_WRITES += ["delete_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOAD)


def start(folder: Path, options: list[str], kill_after: int = 0) -> BaseProcess:
    """Starts ``python -m src.promote OPTIONS`` in a folder.

    Args:
        folder: Its working folder.
        options: Of the command.
        kill_after: Kill itself right after this write to the registry or to a file; 0 never.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    process = _context.Process(target=_run, args=(folder, options, kill_after, uri))
    process.start()
    return process


def _run(folder: Path, options: list[str], kill_after: int, uri: str | None) -> None:
    import mlflow

    from src.promote import main

    os.chdir(folder)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if uri is not None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    left = [kill_after]
    for name in _WRITES:
        setattr(mlflow.MlflowClient, name, _deadly(getattr(mlflow.MlflowClient, name), left))
    # Before the rename as well: there a half-done write leaves its temporary file.
    Path.replace = _deadly(Path.replace, left, before=True)  # type: ignore[method-assign]
    log = Path(f"promote-{os.getpid()}.log").open("w")  # noqa: SIM115 -- open until the process ends
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        status = main(options)
    log.close()
    sys.exit(status)


def _deadly(write: Callable[..., Any], left: list[int], *, before: bool = False) -> Callable[..., Any]:
    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def call(*args: object, **kwargs: object) -> object:
        if before:
            count()
        result = write(*args, **kwargs)
        count()
        return result

    return call
