"""Every signal by which a user or a scheduler asks for an end."""

import os
import signal

import pytest

from src.utils.cli import run_command
from src.utils.runtime import Stopped

ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.mark.parametrize("number", ASKING)
def test_a_command_ends_with_its_number_and_the_way_to_continue(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(number, signal.default_int_handler)  # nohup ignores SIGHUP
    handler = signal.getsignal(number)

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        except Stopped as stopped:
            for again in ASKING[1:]:  # as a scheduler that asks twice, in two ways
                os.kill(os.getpid(), again)
            stopped.add_note("continue with: it")
            raise

    try:
        assert run_command(work) == 128 + number
        assert capsys.readouterr().err == f"error: stopped by {number.name}; continue with: it\n"
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)
