"""A process of ``src.promote`` that kills itself in the midst of its work."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.forked import Forked

_WRITES = ["create_registered_model", "create_model_version", "update_model_version", "set_model_version_tag"]
_WRITES += ["delete_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias"]


def start(folder: Path, options: list[str], kill_after: int) -> Forked:
    """Starts ``python -m src.promote OPTIONS`` in a folder.

    Args:
        folder: Its working folder.
        options: Of the command.
        kill_after: Kill itself right after this write to the registry or to a file; 0 never.
    """
    return Forked("promote", folder, options, functools.partial(_prepare, kill_after))


def _prepare(kill_after: int) -> None:
    import mlflow

    left = [kill_after]
    for name in _WRITES:
        setattr(mlflow.MlflowClient, name, _deadly(getattr(mlflow.MlflowClient, name), left))
    # Before the rename as well: there a half-done write leaves its temporary file.
    Path.replace = _deadly(Path.replace, left, before=True)  # type: ignore[method-assign]


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
