"""Terminal: progress bars, and libraries that print less."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .output import is_quiet

Item = TypeVar("Item")
_WIDTH = 160  # of a table in a pipe or file


def is_interactive() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def wide_console() -> Console:
    """Return a console for tables: a pipe has no width, and a wrapped path or number cannot be read."""
    return Console(width=None if is_interactive() else _WIDTH, highlight=False)


@contextmanager
def bar(
    description: str, total: int, *, done: int = 0, transient: bool = False
) -> Iterator[Callable[[str], None]]:
    """Show a progress bar within the block; silent without a terminal, and if ``total`` is 0.

    Args:
        description: Text before the bar.
        total: Number of steps.
        done: Number of steps that are already done.
        transient: Whether the bar disappears at the end.

    Yields:
        A function to call after each of ``total`` steps with the text to show behind the bar.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    # Each refresh delays training by 2 ms; the text changes twice per second as well.
    progress = Progress(
        *columns,
        console=Console(),
        disable=is_quiet() or not (total and is_interactive()),
        refresh_per_second=2,
        transient=transient,
        redirect_stderr=sys.stderr.isatty(),  # else a warning would appear above the bar, and not in the file
    )
    task = progress.add_task(description, total=total, completed=done, status="")
    with progress:
        yield lambda status: progress.update(task, advance=1, status=status)


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield ``items`` and show how many of ``total`` have passed."""
    with bar(description, total) as advance:
        for item in items:
            yield item
            advance("")


@contextlib.contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Let these loggers report errors only within the block."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Suppress warnings and stdout as well within the block."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet_loggers(*names):
        warnings.simplefilter("ignore")
        yield
