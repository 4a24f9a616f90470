"""Writes docs/bad-input.md: every mistake of `test_bad_input`, tried now, with the answer.

python -m tests.flows.bad_input_table > docs/bad-input.md
"""

import contextlib
import io
import os
import shlex
import tempfile
from pathlib import Path

from src.train import main
from tests.conftest import clean_environment
from tests.flows.test_bad_input import CASES, FAST

HEAD = """# What bad input answers

Made by `python -m tests.flows.bad_input_table`; the same cases are tests (`tests/flows/test_bad_input.py`).
Each was given to `python -m src.train` with the small data set that its name describes; each ends with exit
status 2, leaves no run in the store, and prints one message on stderr.

| mistake | options | answer |
|---|---|---|"""


def answer(name: str) -> tuple[str, int, str]:
    """The options, exit status and message of one case, in an empty folder."""
    prepare, _ = CASES[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        options = prepare(Path(folder))
        os.environ |= clean_environment(Path(folder) / "torch")
        if name == "store in nowhere":
            os.environ["MLFLOW_TRACKING_URI"] = "sqlite:////proc/nowhere/mlflow.db"
        first = FAST[2:] if "--epochs" in options else FAST
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            status = main([*first, *options])
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        lines = errors.getvalue().splitlines()
        begin = next(number for number, line in enumerate(lines) if line.startswith("error: "))
        message = " ".join(map(str.strip, lines[begin:]))  # several problems of a table have a line each
        return shlex.join(options), status, message.replace(folder + "/", "").replace(folder, ".")


def row(name: str) -> str:
    """One row of the table."""
    options, status, message = answer(name)
    if status != 2:
        raise SystemExit(f"{name}: exit status {status}")
    cells = [name, f"`{options}`", f"`{message}`"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(HEAD)
    for case in CASES:
        print(row(case), flush=True)
