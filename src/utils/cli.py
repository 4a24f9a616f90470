"""What every command does around its work: signals, messages, exit statuses."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..errors import ConfigError, MlprojectError
from .output import never_raise
from .runtime import Stopped, stop_signals

_DISK = "check the disk's free space and permissions"


class CommandParser(argparse.ArgumentParser):
    """Arguments of a command; a mistake is an error like any other, and options are spelled in full."""

    def __init__(self, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises what `run_command` turns into a message and exit status 2."""
        raise ConfigError(f"{message}; {self.prog} --help lists the options")


def add_flag(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """Adds an option that is given bare, or with ``true`` or ``false`` as ``mlflow run`` passes it."""
    parser.add_argument(
        name, metavar="BOOL", nargs="?", const=True, default=False, type=_flag, help=help_text
    )


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", ""):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def run_command(work: Callable[[], None]) -> int:
    """Runs a command's work and returns its exit status.

    0; 2 for what the user can mend; 1 where the work failed; 128 plus the number of the signal that ended it.
    A message goes to stderr; only an error that nobody foresaw shows its traceback.
    """
    never_raise()
    with stop_signals():
        try:
            work()
        except MlprojectError as error:
            return _fail(str(error), error.exit_code)
        except Stopped as stopped:
            return _fail(str(stopped), stopped.exit_code)
        except MemoryError:
            return _fail("out of memory; lower training.batch_size or data.image_size", 1)
        except OSError as error:
            is_gone = isinstance(error, FileNotFoundError)
            hint = "was it deleted or moved while the command ran?" if is_gone else _DISK
            return _fail(f"{error}; {hint}", 1)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            remedy = "lower training.batch_size or data.image_size"
            on_gpu = "on a GPU also try data.device_cache=off and training.compile=off"
            return _fail(f"out of memory; {remedy}; {on_gpu} ({error})", 1)
    return 0


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch says it in words on a CPU, and with a class of its own on a GPU.
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def _fail(message: str, exit_code: int) -> int:
    who = f"{_Voice.name}: " if _Voice.name else ""
    print(f"{who}error: {message}", file=sys.stderr, flush=True)
    return exit_code


class _Voice:
    """Who speaks, where several processes would say the same; the one without a name speaks for all."""

    name = ""


def fall_silent(name: str) -> None:
    """From here on this process prints nothing but its error, under its name."""
    _Voice.name = name
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def span(seconds: float) -> str:
    """A time in words, such as ``12 min``."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def warn(message: str) -> None:
    """Shows a warning on stderr."""
    if not _Voice.name:
        print(f"warning: {message}", file=sys.stderr, flush=True)
