"""``python -m src.verify``: check with your own settings that a resumed training is exact."""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError, MlprojectError
from .utils.cli import CommandParser, run_command

if TYPE_CHECKING:
    from .training.run_folder import RunFolders

_UNINTERRUPTED, _KILLED = "uninterrupted", "killed"
_OWN_OPTIONS = ("--resume", "--promote", "--dry-run")
_EVERY = ("--set", "training.checkpoint_every_minutes=0.05")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _verify(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.verify", __doc__.partition(": ")[2])
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    resume = commands.add_parser(
        "resume",
        help="train, train again with kill -9 at random times, and compare; all other options are those "
        "of src.train; exit 0 only if both are identical",
    )
    resume.add_argument("--kills", type=_count, default=5, metavar="N", help="number of kills (5)")
    resume.add_argument(
        "--moments", type=int, default=0, metavar="SEED", help="random seed of the kill times (0)"
    )
    resume.add_argument(
        "--store", choices=("sqlite", "file"), default="sqlite", help="kind of store (sqlite)"
    )
    resume.add_argument("--keep", action="store_true", help="keep what was trained")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of kills")
    return int(text)


def _verify(argv: Sequence[str] | None) -> None:
    args, options = _parser().parse_known_args(argv)
    for option in options:
        if option.partition("=")[0] in _OWN_OPTIONS:
            raise ConfigError(f"{option}: src.verify trains twice by itself; leave it out")
    # Not in /tmp, but on the disk that a real training uses.
    work = Path(tempfile.mkdtemp(prefix=".verify-", dir=Path.cwd()))
    try:
        _resume(args, options, work)
    finally:
        if args.keep:
            print(f"kept in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def _resume(args: argparse.Namespace, options: Sequence[str], work: Path) -> None:
    from .training.run_folder import RunFolders
    from .verification.run_digest import run_digest

    with _store(args.store, work):
        uninterrupted, killed = (RunFolders(work, name) for name in (_UNINTERRUPTED, _KILLED))
        start_up, duration = _train_uninterrupted(options, uninterrupted)
        print(f"trained without interruption in {duration:.0f} s, of which {start_up:.0f} s to start")
        kills = _train_killed(args, options, killed, start_up, duration)
        differing = _show(run_digest(uninterrupted), run_digest(killed))
    if differing:
        args.keep = True
        raise MlprojectError(f"not identical: {', '.join(differing)}; both trainings are in {work}")
    if kills == 0:
        raise MlprojectError(
            "the training ended before the first kill, so nothing was verified; use more --epochs"
        )
    print(f"identical after {kills} times kill -9")


@contextlib.contextmanager
def _store(kind: str, work: Path) -> Iterator[None]:
    """Use a separate store in this process and its children."""
    from .tracking.store import open_store

    before = dict(os.environ)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)
    uris = {"sqlite": f"sqlite:///{work}/mlflow.db", "file": f"{work}/mlruns"}
    os.environ["MLFLOW_TRACKING_URI"] = uris[kind]
    try:
        with contextlib.chdir(work):  # a new database stores artifacts below the working folder
            open_store()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _train_uninterrupted(options: Sequence[str], folders: "RunFolders") -> tuple[float, float]:
    """Train to the end; return the seconds to the first step, and in total."""
    began, started = time.time(), time.monotonic()
    with _training(options, folders) as process:
        _check_end(process.wait(), folders)
    return folders.config.stat().st_mtime - began, time.monotonic() - started


def _train_killed(
    args: argparse.Namespace, options: Sequence[str], folders: "RunFolders", start_up: float, duration: float
) -> int:
    """Train to the end with kills in between; return how many kills there were."""
    from .verification.kills import inspect_after_kill, kill_times

    options = [*options, "--resume", "auto"]
    for number, seconds in enumerate(kill_times(args.kills, start_up, duration, args.moments), 1):
        with _training(options, folders) as process:
            try:
                _check_end(process.wait(seconds), folders)
                return number - 1
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        found = inspect_after_kill(folders)
        print(f"kill {number} of {args.kills} after {seconds:.1f} s: {found}", flush=True)
        if found.is_finished:
            return number
    with _training(options, folders) as process:
        _check_end(process.wait(), folders)
    return int(args.kills)


@contextlib.contextmanager
def _training(options: Sequence[str], folders: "RunFolders") -> Iterator["subprocess.Popen[bytes]"]:
    """Start a training process; kill it at the end of the block."""
    own = [f"experiment.output_dir={folders.output}", f"experiment.name={folders.name}"]
    command = [
        sys.executable,
        "-m",
        f"{__package__}.train",
        *_EVERY,
        *options,
        *(f"--set={setting}" for setting in own),
    ]
    with _log(folders).open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _log(folders: "RunFolders") -> Path:
    return folders.output / f"{folders.name}.log"


def _check_end(status: int, folders: "RunFolders") -> None:
    if status != 0:
        *_, last = ["", *_log(folders).read_text().splitlines()]
        raise MlprojectError(f"the training {folders.name} ended with exit status {status}: {last}")


def _show(uninterrupted: dict[str, str], killed: dict[str, str]) -> list[str]:
    """Print both digests; return the parts that differ."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", _UNINTERRUPTED, f"{_KILLED} and resumed")
    differing = [name for name in uninterrupted | killed if uninterrupted.get(name) != killed.get(name)]
    for name in uninterrupted | killed:
        found = f"DIFFERENT: {killed.get(name, 'missing')}" if name in differing else "identical"
        table.add_row(name, uninterrupted.get(name, "missing"), found)
    Console().print(table)
    return differing


if __name__ == "__main__":
    sys.exit(main())
