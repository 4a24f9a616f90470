"""What a user sees: a command prints; a function of the Python interface warns, and prints if asked."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .. import PACKAGE
from ..errors import MlprojectWarning


@dataclass(frozen=True)
class _Call:
    """A call of the Python interface: where the user's code made it, and whether it may print."""

    file: str
    line: int
    is_verbose: bool


class _Current:
    """The call that this process executes; None in a command."""

    call: _Call | None = None


def is_quiet() -> bool:
    """Return whether nothing may be printed, not even a progress bar."""
    return _Current.call is not None and not _Current.call.is_verbose


def say(text: str) -> None:
    """Print a line, unless a function of the Python interface is quiet."""
    if not is_quiet():
        print(text)


def warn_from_python(message: str) -> bool:
    """Raise a warning at the user's line if the Python interface was called; return whether it was."""
    call = _Current.call
    if call is not None:
        # Without a registry: each warning is shown, also one that a former call has shown.
        warnings.warn_explicit(message, MlprojectWarning, call.file, call.line)
    return call is not None


@contextmanager
def called_from_python(*, verbose: bool) -> Iterator[None]:
    """Turn warnings into Python's within the block, and print only if ``verbose``."""
    frame = sys._getframe()
    while frame.f_back and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    before, _Current.call = _Current.call, _Call(frame.f_code.co_filename, frame.f_lineno, verbose)
    try:
        yield
    finally:
        _Current.call = before


def _is_ours(module: str) -> bool:
    return module == "contextlib" or module.partition(".")[0] == PACKAGE
