"""``python -m src.store``: maintain the tracking store: deliver, check, relocate."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .utils.cli import CommandParser, command, command_main


def _parser() -> CommandParser:
    parser = CommandParser(command("store"), __doc__.partition(": ")[2])
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    sync = commands.add_parser(
        "sync", help="deliver to the server what it missed of a run; the run's process must have ended"
    )
    sync.add_argument("run_folder", metavar="RUN_FOLDER", help="the folder of the run, such as outputs/NAME")
    doctor = commands.add_parser(
        "doctor",
        help="find orphaned runs, leftover files, and promotions that do not agree; exit 1 if there are any",
    )
    doctor.add_argument("--apply", action="store_true", help="mark such runs KILLED and delete the leftovers")
    doctor.add_argument("--output-dir", metavar="DIR", help="where runs keep their files (outputs)")
    commands.add_parser(
        "relocate", help="after the folder was moved or copied: update the paths that the store holds"
    )
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    if args.command == "sync":
        from .tracking.sync import sync

        print(sync(Path(args.run_folder)))
    elif args.command == "doctor":
        from .verification.doctor import examine

        examine(None if args.output_dir is None else Path(args.output_dir), apply=args.apply)
    else:
        from .tracking.artifact_paths import relocate

        relocate()


if __name__ == "__main__":
    sys.exit(main())
