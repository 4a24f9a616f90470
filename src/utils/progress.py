"""Progress bars on a terminal, silence elsewhere."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def is_interactive() -> bool:
    """Whether a person watches: stdout is a terminal."""
    return sys.stdout.isatty()


@contextmanager
def bar(description: str, total: int, *, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Shows a progress bar within the block, ``done`` of it from before; silent where nobody watches.

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
    # A refresh takes 2 ms of Python, in which training waits; its own text changes as often as this.
    progress = Progress(*columns, console=Console(), disable=not is_interactive(), refresh_per_second=2)
    task = progress.add_task(description, total=total, completed=done, status="")
    with progress:
        yield lambda status: progress.update(task, advance=1, status=status)


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yields ``items`` and shows how many of ``total`` have passed."""
    with bar(description, total) as advance:
        for item in items:
            yield item
            advance("")
