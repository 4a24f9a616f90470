"""What becomes of standard output never changes a run: pipes, terminals and disks behind it may go away."""

import contextlib
import os
import re
import select
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from tests.flows.processes import STARTED, TINY, only_run
from tests.images import write_folder, write_npz

pytestmark = pytest.mark.slow

PYTHON = " ".join([sys.executable, "-m", "src.train", *TINY])


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_shell(folder: Path, command: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=clean_environment(folder / "torch") | env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stderr


def to_head(folder: Path) -> tuple[int, str]:
    return in_shell(folder, f"{PYTHON} --epochs 3 | head -3 > shown; exit ${{PIPESTATUS[0]}}")


def both_to_true(folder: Path) -> tuple[int, str]:
    return in_shell(folder, f"{PYTHON} |& true; exit ${{PIPESTATUS[0]}}")


def to_full_disk(folder: Path) -> tuple[int, str]:
    return in_shell(folder, f"{PYTHON} > /dev/full")


def all_to_full_disk(folder: Path) -> tuple[int, str]:
    return in_shell(folder, f"{PYTHON} &> /dev/full")


def all_closed(folder: Path) -> tuple[int, str]:
    return in_shell(folder, f"{PYTHON} <&- >&- 2>&-")


def to_closed_terminal(folder: Path) -> tuple[int, str]:
    """As after `setsid`: the terminal goes away, and the process lives on."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "src.train", *TINY],
        cwd=folder,
        env=clean_environment(folder / "torch"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    os.close(theirs)
    os.read(ours, 1)  # it has begun to write
    os.close(ours)
    return process.wait(timeout=240), ""


WAYS: dict[str, tuple[Callable[[Path], tuple[int, str]], str]] = {
    "| head -3": (to_head, ""),
    "|& true": (both_to_true, ""),
    "> /dev/full": (to_full_disk, "warning: the output cannot be written (No space left on device)\n"),
    "&> /dev/full": (all_to_full_disk, ""),
    "closed": (all_closed, ""),
    "closed terminal": (to_closed_terminal, ""),
}

SLOW = {"|& true", "&> /dev/full"}  # each is a fresh start of Python


@pytest.mark.usefixtures("npz", "sqlite")
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.exhaustive] if way in SLOW else []) for way in WAYS]
)
def test_a_training_whose_output_goes_nowhere_finishes(folder: Path, way: str) -> None:
    train, said = WAYS[way]
    assert train(folder) == (0, said)
    run = only_run(folder)
    assert run.info.status == "FINISHED"
    assert "best_val_auc" in run.data.metrics
    assert "error" not in run.data.tags
    if way == "| head -3":
        shown = (folder / "shown").read_text().splitlines()
        assert [line.split()[0] for line in shown] == ["sensitivity", "run", "epoch"]


def test_a_name_that_the_terminal_cannot_show_is_escaped(folder: Path) -> None:
    write_folder(folder / "small.npz", counts={"train": 8, "val": 8})
    for negative in (folder / "small.npz").rglob("neg"):
        negative.rename(negative.with_name("blöd"))
    code, error = in_shell(folder, f"{PYTHON} --modality A --dry-run > out.txt", PYTHONIOENCODING="ascii")
    assert (code, error) == (0, "")
    assert "bl\\xf6d" in (folder / "out.txt").read_text()


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_a_line_in_a_pipe_is_there_at_once(folder: Path, unbuffered: list[str]) -> None:
    code = "import time; from src.utils.cli import never_raise; never_raise(); print(1); time.sleep(99)"
    with subprocess.Popen(
        [sys.executable, *unbuffered, "-c", code],
        env=clean_environment(folder / "torch"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        is_there = bool(select.select([process.stdout], [], [], 30)[0])
        process.kill()
    assert is_there


def on_terminal(folder: Path, *args: str) -> str:
    """What a command writes to a terminal of 100 columns."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    process = subprocess.Popen(
        [sys.executable, "-m", "src.train", *args],
        cwd=folder,
        env=clean_environment(folder / "torch") | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other side is closed
        while read := os.read(ours, 65536):
            shown += read
    os.close(ours)
    assert process.wait(timeout=240) == 0, shown
    return shown.decode()


@pytest.mark.usefixtures("sqlite")
def test_a_terminal_shows_a_bar_for_the_epoch_under_way_and_a_line_for_each(folder: Path) -> None:
    write_npz(folder / "small.npz", val=8)  # four images of each class
    shown = on_terminal(folder, *TINY, "--epochs", "2")
    assert "epoch 2/2" in shown  # the bar
    lines = [ESCAPES.sub("", line).rpartition("\r")[2] for line in shown.split("\r\n")]
    assert max(map(len, lines)) <= 100
    epochs = [line for line in lines if re.match(r" +\d/2 ", line)]
    assert [line.split()[0] for line in epochs] == ["1/2", "2/2"]
    assert [line for line in lines if re.match(r"│ n of class 1 \(positive\) │ 4 images +│ 8 images", line)]
    few = "4 images of class 0, 4 images of class 1 in validation: specificity, sensitivity and AUC cannot be"
    assert few[:60] in "\n".join(lines)
    assert "0/0" not in shown
