"""Process-wide state that a function of the Python interface sets for itself, and restores."""

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from PIL.Image import DecompressionBombWarning

from ..errors import TrainingError
from .cli import explained_errors
from .memory import return_freed_memory
from .output import called_from_python
from .runtime import Stopped, stop_signals

_LEVELS = {
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
    "alembic": logging.WARNING,
    "pydicom": logging.CRITICAL,
}
_one_call = threading.RLock()  # what is set for a call is set for the whole process


@contextmanager
def python_call(*, verbose: bool) -> Iterator[None]:
    """Execute a function of the Python interface within the block, one at a time.

    What it changes for the whole process is restored at its end, also after an error: environment variables,
    logging, warning filters, signal handlers, and torch's threads, dtype, determinism and random generators.

    Raises:
        MlprojectError: The memory or the disk failed.
        KeyboardInterrupt: Ctrl-C was pressed, after the run has ended KILLED.
    """
    try:
        with _one_call, ExitStack() as undo:
            undo.enter_context(called_from_python(verbose=verbose))
            for keep in (_environment, _logging, _warnings, _torch, _random, _memory):
                undo.enter_context(keep())
            undo.enter_context(stop_signals(signal.default_int_handler))
            undo.enter_context(explained_errors())
            yield
    except Stopped as stopped:
        # Again, for the caller's handlers: by default, Ctrl-C raises KeyboardInterrupt, and SIGTERM ends.
        signal.raise_signal(stopped.exit_code - 128)
        raise TrainingError(f"{stopped}; train(resume=RUN_ID) continues a run that was stopped") from None


@contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _logging() -> Iterator[None]:
    """Give libraries the levels that they have in a command; restore levels and handlers of all loggers."""
    named = [
        logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)
    ]
    before = [
        (logger, logger.level, logger.disabled, logger.handlers[:]) for logger in (logging.root, *named)
    ]
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for logger, level, disabled, handlers in before:
            logger.setLevel(level)
            logger.disabled, logger.handlers[:] = disabled, handlers


@contextmanager
def _warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # Here too, since the modules that do so are imported only once.
        warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
        warnings.simplefilter("ignore", DecompressionBombWarning)
        yield


@contextmanager
def _torch() -> Iterator[None]:
    """Give torch the settings that it has in a command; restore the caller's."""
    threads, dtype, device = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    torch.set_default_dtype(torch.float32)
    if device.type != "cpu":
        torch.set_default_device(None)
    try:
        with torch.random.fork_rng(gpus), torch.inference_mode(mode=False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)


@contextmanager
def _random() -> Iterator[None]:
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    finally:
        return_freed_memory()
