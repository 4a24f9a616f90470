"""What every command does around its work: signals, messages, exit statuses."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import ConfigError, MlprojectError
from .output import never_raise
from .runtime import Stopped, stop_signals

_DISK = "check the disk's free space and permissions"


class CommandParser(argparse.ArgumentParser):
    """Parser of a command's options, which are spelled in full; a mistake raises `ConfigError`.

    An option with an empty value counts as not given, because ``mlflow run`` passes all of them.
    """

    def __init__(self, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises what `run_command` turns into a message and exit status 2."""
        raise ConfigError(f"{message}; {self.prog} --help lists the options")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments (those of the process unless given) without the empty options."""
        actions = self._option_string_actions.items()
        names = {name for name, action in actions if action.nargs in (None, "?") and action.default != []}
        kept: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if not word and kept and kept[-1] in names:
                kept.pop()
            elif not (word.endswith("=") and word[:-1] in names):
                kept.append(word)
        return super().parse_known_args(kept, namespace)


def add_flag(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """Adds an option that is given bare, or with ``true`` or ``false`` as ``mlflow run`` passes it."""
    parser.add_argument(
        name, metavar="BOOL", nargs="?", const=True, default=False, type=_flag, help=help_text
    )


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def whole_number(low: int, high: float = math.inf) -> Callable[[str], int]:
    """Return an argument type: a whole number from ``low`` to ``high``."""
    expected = f"a whole number from {low}" + (f" to {high}" if high < math.inf else "")

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return int(text)

    return parse


def number(is_allowed: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """Return an argument type: a number for which ``is_allowed`` holds; ``expected`` names such numbers."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not is_allowed(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


def duration(text: str) -> float:
    """Return the seconds of an argument such as ``90s``, ``30m``, ``2h`` or ``1d``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90s, 30m, 2h or 1d, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


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
