"""``python -m src.store``: care for what a store holds of runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MlprojectError, UserError
from .utils.cli import CommandParser, run_command

if TYPE_CHECKING:
    from rich.table import Table

    from .tracking.liveness import Liveness
    from .tracking.sync import PendingDelivery

_SHOWN = 5
_WIDE = 160  # a pipe has no width, and a wrapped path is no path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _store(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.store", __doc__.partition(": ")[2])
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    sync = commands.add_parser(
        "sync", help="deliver to the server what it missed of a run; the run's process must have ended"
    )
    sync.add_argument("run_folder", metavar="RUN_FOLDER", help="the folder of the run, such as outputs/NAME")
    doctor = commands.add_parser(
        "doctor", help="look for runs whose process is gone, leftovers, and what does not agree; exit 1 if so"
    )
    doctor.add_argument("--apply", action="store_true", help="mark such runs KILLED and delete the leftovers")
    doctor.add_argument(
        "--output-dir", metavar="DIR", default="outputs", help="where runs keep their files (outputs)"
    )
    commands.add_parser(
        "relocate",
        help="after the folder was moved or copied: make the store's paths lead to where it is now",
    )
    return parser


def _store(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    {"sync": _sync, "doctor": _doctor, "relocate": _relocate}[args.command](args)


def _sync(args: argparse.Namespace) -> None:
    from .tracking.journal import items
    from .tracking.store import shown_uri
    from .tracking.sync import sync

    folder = Path(args.run_folder)
    done = sync(folder)
    if done.run_id is None:
        print(f"{folder}: nothing is missing")
    elif done.count == 0:
        print(f"run {done.run_id}: nothing is missing at {shown_uri()}; the run is {done.status}")
    else:
        print(f"run {done.run_id}: {items(done.count)} delivered to {shown_uri()}; the run is {done.status}")


def _relocate(_args: argparse.Namespace) -> None:
    from .tracking.artifact_paths import relocate
    from .tracking.store import open_store, shown_uri

    open_store(must_exist=True)
    done = relocate()
    if done.roots:
        was = ", ".join(map(str, done.roots))
        print(f"{shown_uri()}: {done.changed} paths that led to {was} lead here now")
    else:
        print(f"{shown_uri()}: no path led elsewhere to what lies here")
    if done.lost:
        shown = ", ".join(done.lost[:_SHOWN]) + (" ..." if len(done.lost) > _SHOWN else "")
        raise MlprojectError(f"what these keep is neither here nor where the store says: {shown}")


def _doctor(args: argparse.Namespace) -> None:
    from .tracking.store import http_retries, open_store, quiet_client
    from .tracking.sync import find_pending

    output = Path(args.output_dir)
    if output != Path("outputs") and not output.is_dir():
        raise UserError(f"--output-dir {output}: no folder; experiment.output_dir of the runs belongs here")
    _show_machine(output)
    with http_retries(2), quiet_client():
        open_store(must_exist=True)
        left = find_pending(output)
        wrong = [
            *_check_store(),
            *_check_runs(left, apply=args.apply),
            *_check_temps(output, apply=args.apply),
            *_check_journals(left),
            *_check_agreement(),
        ]
    if wrong:
        raise MlprojectError("; ".join(wrong))
    print("nothing is wrong")


def _show_machine(output: Path) -> None:
    """Print disk space, versions and devices, which need no open store."""
    from importlib.metadata import version

    from .tracking.store import local_path, resolve_uri, shown_uri
    from .utils.runtime import environment

    print(f"store      {shown_uri()}")
    places = {"the store": local_path(resolve_uri()), "outputs": output.absolute()}
    print(f"free disk  {'; '.join(_free(name, path) for name, path in places.items() if path)}")
    versions = environment() | {"mlflow": version("mlflow")}
    names = ("python", "torch", "torchvision", "mlflow", "numpy")
    print(f"versions   {', '.join(f'{name} {versions[name]}' for name in names)}")
    print(f"devices    {', '.join(_devices())}")


def _free(name: str, path: Path) -> str:
    import shutil

    from rich.filesize import decimal

    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    usage = shutil.disk_usage(there)
    return f"{decimal(usage.free)} of {decimal(usage.total)} for {name} in {there}"


def _devices() -> list[str]:
    import torch

    cards = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [f"cpu ({torch.get_num_threads()} threads)", *cards, *mps]


def _check_store() -> list[str]:
    from .tracking.store import shown_uri, why_not_writable

    why = why_not_writable()
    print(f"writable   {'yes' if why is None else f'no: {why}'}")
    return [] if why is None else [f"{shown_uri()} cannot be written: {why}"]


def _check_runs(left: "list[PendingDelivery]", *, apply: bool) -> list[str]:
    from .tracking.liveness import DEAD, check_running_runs, mark_killed

    runs = check_running_runs(left)
    dead = [run for run in runs if run.state == DEAD]
    if runs:
        _print(_table_of(runs))
    else:
        print("runs       none is RUNNING")
    if not apply:
        what = f"{len(dead)} of {len(runs)} RUNNING runs dead"
        return [f"{what}: python -m src.store doctor --apply marks them KILLED"] if dead else []
    for run_id in (found.run.run_id for found in dead):
        is_killed = mark_killed(run_id, left)
        print(f"run {run_id}: {'marked KILLED' if is_killed else 'left alone, it is no longer dead'}")
    return []


def _table_of(runs: "list[Liveness]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("RUNNING", "name", "state", "why")
    for found in runs:
        table.add_row(*map(escape, (found.run.run_id, found.run.name, found.state, found.why)))
    return table


def _check_temps(output: Path, *, apply: bool) -> list[str]:
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from .promotion.history import FOLDER
    from .tracking.store import local_path, resolve_uri
    from .utils.cli import span
    from .utils.io import find_temps

    store = local_path(resolve_uri())
    temps = find_temps(output, FOLDER, *([store.parent] if store else []))
    table = Table("temporary", "size", "age", "")
    for temp in temps:
        state = "left over" if temp.is_orphaned else "in use, or too young to tell"
        table.add_row(escape(str(temp.path)), decimal(temp.size), span(temp.age), state)
    if temps:
        _print(table)
    leftovers = [temp for temp in temps if temp.is_orphaned]
    if not apply:
        what = f"{len(leftovers)} of {len(temps)} temporary files left over"
        return [f"{what}: python -m src.store doctor --apply deletes them"] if leftovers else []
    for temp in leftovers:
        temp.remove()
        print(f"{temp.path}: deleted")
    return []


def _check_journals(left: "list[PendingDelivery]") -> list[str]:
    """Those that nobody delivers from; an empty one is of a process that had delivered all when it died."""
    from .tracking.journal import items

    waiting = [one for one in left if not one.is_held and (one.count or one.run_id is None)]
    for one in waiting:
        print(f"{one.results}: {items(one.count)} of run {one.run_id or 'unknown'} not delivered")
    return [f"python -m src.store sync {one.results} delivers what waits there" for one in waiting]


def _check_agreement() -> list[str]:
    from .promotion.report import check_consistency

    found = check_consistency(None, None)
    wrong = {name: problems for name, problems in found.items() if problems}
    print(f"promoted   groups: {len(found)}; where YAML and registry do not agree: {len(wrong)}")
    for name, problems in wrong.items():
        print(f"{name}: {'; '.join(problems)}")
    return [f"not all agree: {', '.join(wrong)}; see python -m src.promote --check"] if wrong else []


def _print(table: "Table") -> None:
    from rich.console import Console

    from .utils.console import is_interactive

    Console(width=None if is_interactive() else _WIDE, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
