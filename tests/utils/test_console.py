"""What a terminal shows of a bar."""

import io
import sys

import pytest

from src.utils.console import bar


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("total", "is_shown"), [(0, False), (2, True)])
def test_a_bar_of_nothing_is_not_shown(total: int, is_shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with bar("Reading", total) as advance:
        for _ in range(total):
            advance("")
    assert ("Reading" in terminal.getvalue()) == is_shown
