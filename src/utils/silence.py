"""Keeps libraries that tell too much off the terminal; errors still raise."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Within the block these loggers tell of errors only."""
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
    """The same, without warnings and without what is printed to stdout."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet_loggers(*names):
        warnings.simplefilter("ignore")
        yield
