"""``python -m src.store``: care for what a store holds of a run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from src.utils.cli import CommandParser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(lambda: _store(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.store", __doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)
    sync = commands.add_parser(
        "sync", help="deliver to the server what it missed of a run; the run's process must have ended"
    )
    sync.add_argument("run_folder", metavar="RUN_FOLDER", help="the folder of the run, such as outputs/NAME")
    return parser


class _Command(CommandParser):
    def __init__(self, prog: str, **_options: object) -> None:
        super().__init__(prog, "")


def _store(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    {"sync": _sync}[args.command](Path(args.run_folder))


def _sync(folder: Path) -> None:
    from src.tracking.journal import items
    from src.tracking.store import shown_uri
    from src.tracking.sync import sync

    done = sync(folder)
    if done.run_id is None:
        print(f"{folder}: nothing is missing")
    elif done.count == 0:
        print(f"run {done.run_id}: nothing is missing at {shown_uri()}; the run is {done.status}")
    else:
        print(f"run {done.run_id}: {items(done.count)} delivered to {shown_uri()}; the run is {done.status}")


if __name__ == "__main__":
    sys.exit(main())
