"""Writes docs/interruptions.md: every cause of `test_causes`, brought about now, with what came of it.

python -m tests.flows.causes_table > docs/interruptions.md
"""

import contextlib
import os
import tempfile
from pathlib import Path

from tests.conftest import clean_environment
from tests.flows.scene import Row, measure, scene_in
from tests.flows.test_causes import CASES, check, run_whole
from tests.flows.test_resume import assert_same

HEAD = """# What ends a training, and what is left

Made by `python -m tests.flows.causes_table`; the same cases are tests (`tests/flows/test_causes.py`). Each is
a process of its own, `python -m src.train`, that trains six epochs and writes `latest.pth` after every step.
It is stopped within them, the cause is brought about, and it goes on. Where it says *identical*, the resumed
run ended with the same weights to the last bit, the same table of epochs and predictions to the last byte,
and one value for each metric and step, as a run that nothing happened to. Exit status -2 and -9: the process
was ended by that signal (a shell shows 130 and 137). Disks and folders are real mounts that are full or
read-only.

| cause | run in MLflow | exit status | message | on disk | `python -m src.train --resume RUN_ID` |
|---|---|---|---|---|---|"""


def row(name: str) -> str:
    """One line of the table; a case that does not come out as its test says ends the command."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve() / "work"
        work.mkdir()
        os.environ |= clean_environment(work / "torch")
        with scene_in(work) as scene:
            found = measure(case, scene)
            check(case, found)
            if found.after == "FINISHED":
                other = Path(folder).resolve() / "whole"
                other.mkdir()
                assert_same(run_whole(other, scene), work, "", scene.uri)
    cells = [name, found.status, str(found.exit_code), shown(found.message), disk(found), resumed(found)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shown(message: str) -> str:
    """Lines of stderr, one below the other."""
    return "<br>".join(f"`{line}`" for line in message.split(" / ") if line) or "none"


def disk(found: Row) -> str:
    left = f", {found.leftovers} temporary file" if found.leftovers else ""
    return found.disk + left


def resumed(found: Row) -> str:
    code, message = found.resumed
    what = "identical" if code == 0 else f"exit {code}: {shown(message)}"
    return f"{found.before}: {what}" if found.before else what


if __name__ == "__main__":
    print(HEAD)
    with contextlib.suppress(BrokenPipeError):
        for case_name in CASES:
            print(row(case_name), flush=True)
