"""Command lines: parsers, options for settings, streams that never fail, exit statuses."""

import argparse
import errno
import functools
import io
import math
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from .. import PACKAGE
from ..errors import ConfigError, MlprojectError
from .output import warn_from_python
from .project import enter_project
from .runtime import Stopped, stop_signals


def command(words: str) -> str:
    """Return a command of this package as the user types it: an installed one, or one of a checkout.

    Args:
        words: Its name, and options, such as ``store doctor --apply``.
    """
    return f"{PACKAGE} {words}" if PACKAGE == "mlproject" else f"python -m {PACKAGE}.{words}"


_CLOSED = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended; the terminal was closed


class _Stream(io.FileIO):
    """A standard stream that drops what it cannot write, and reports the first loss."""

    def write(self, data: Any) -> int:  # noqa: ANN401 -- any buffer of bytes
        """Write or drop bytes; return how many were written or dropped, which is never 0."""
        try:
            while (count := super().write(data)) is None:  # another program made the stream non-blocking
                select.select([], [self], [])
        except OSError as error:
            _silence(self.fileno())
            if error.errno not in _CLOSED and self.fileno() == 1:
                print(f"warning: the output cannot be written ({error.strerror})", file=sys.stderr)
            return len(data)
        return count


def _silence(descriptor: int) -> None:
    """Redirect a file descriptor to the null device, also for libraries that write to it directly."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def never_raise() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that never raise, unless a caller replaced them.

    Characters that the encoding lacks are written as escape sequences. A closed stream is redirected to the
    null device; otherwise the next opened file would get its descriptor, and the output of libraries.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr)


def _stream(descriptor: int, old: TextIO | None) -> TextIO:
    if old is not None:
        old.flush()
    buffered = io.BufferedWriter(_Stream(descriptor, "wb", closefd=False))
    encoding = None if old is None else old.encoding
    # Line buffering also in pipes and files, so that the log of a job is up to date.
    return io.TextIOWrapper(buffered, encoding, errors="backslashreplace", line_buffering=True)


_DISK = "check the disk's free space and permissions"
_LESS_MEMORY = "lower training.batch_size or data.image_size"


class CommandParser(argparse.ArgumentParser):
    """Argument parser that raises `ConfigError`, and ignores options with an empty value.

    ``mlflow run`` passes all options, those that are not set as empty strings.
    """

    def __init__(self, prog: str, description: str = "") -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise an error that `run_command` turns into a message and exit status 2."""
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
    """Add an option without a value, or with ``true`` or ``false`` as ``mlflow run`` passes it."""
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


def command_main(work: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Decorate the ``main`` of a command, so that it returns the exit status of `run_command`."""

    @functools.wraps(work)
    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(lambda: work(argv))

    return main


def run_command(work: Callable[[], None]) -> int:
    """Run a command's work and return its exit status.

    0: success; 1: the work failed; 2: the user can correct the input; 128 plus the number of a signal.
    Errors are printed on stderr as one message; only unexpected ones show a traceback.
    """
    never_raise()
    enter_project()
    with stop_signals():
        try:
            with explained_errors():
                work()
        except (MlprojectError, Stopped) as error:
            return _fail("; ".join([str(error), *getattr(error, "__notes__", [])]), error.exit_code)
    return 0


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors of the machine within the block, such as a full disk, into a message with a remedy.

    Raises:
        MlprojectError: The memory or the disk failed.
    """
    try:
        yield
    except MemoryError:
        raise MlprojectError(f"out of memory; {_LESS_MEMORY}") from None
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        hint = "was it deleted or moved while the command ran?" if is_gone else _DISK
        raise MlprojectError(f"{error}; {hint}") from error
    except RuntimeError as error:
        # torch has a class for this error on a GPU, but not on a CPU.
        if type(error).__name__ != "OutOfMemoryError" and "DefaultCPUAllocator" not in str(error):
            raise
        on_gpu = "on a GPU also try data.device_cache=off and training.compile=off"
        raise MlprojectError(f"out of memory; {_LESS_MEMORY}; {on_gpu} ({error})") from error


def _fail(message: str, exit_code: int) -> int:
    prefix = f"{_SilencedRank.name}: " if _SilencedRank.name else ""
    print(f"{prefix}error: {message}", file=sys.stderr, flush=True)
    return exit_code


class _SilencedRank:
    """Name of this rank if it is silenced, to prefix its error with; empty for the main rank."""

    name = ""


def silence_rank(name: str) -> None:
    """Silence this rank; its error is printed with the rank's name."""
    _SilencedRank.name = name
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def span(seconds: float) -> str:
    """Return a duration as text, such as ``12 min``."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as ``1 group`` or ``2 groups``; ``many`` if an s is not enough."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def warn(message: str) -> None:
    """Print a warning on stderr; from Python, raise it as a `MlprojectWarning`."""
    if not warn_from_python(message) and not _SilencedRank.name:
        print(f"warning: {message}", file=sys.stderr, flush=True)


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and the options that override it, except ``--model`` and ``--modality``."""
    parser.add_argument("--config", metavar="FILE", help="YAML; config/default_config.yaml shows all")
    parser.add_argument("--data", metavar="PATH", help="demo, a folder, a table (.csv), or a MedMNIST .npz")
    parser.add_argument("--epochs", metavar="N", help="passes over the training split")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any setting by its dotted key"
    )
    parser.add_argument("--overrides", metavar="LIST", default="", help="the same, comma-separated")


def changed_settings(args: argparse.Namespace, model: str | None, modality: str | None) -> dict[str, Any]:
    """Return the settings that the options change, by dotted key.

    Raises:
        ConfigError: An option is malformed.
    """
    from .config_yaml import parse_overrides, parse_yaml, split_overrides

    changes: dict[str, Any] = {}
    if model:
        changes["model.name"] = model
    if modality:
        changes["data.modalities"] = modality.split("+")
    if args.data:
        changes["data.root_dir"] = args.data
    if args.epochs:
        changes["training.epochs"] = parse_yaml(args.epochs, "--epochs")
    return changes | parse_overrides([*split_overrides(args.overrides), *args.set])
