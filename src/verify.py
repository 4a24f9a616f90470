"""``python -m src.verify``: check with your own settings that a resumed training is exact."""

import sys
from collections.abc import Sequence

from .utils.cli import CommandParser, command, command_main, whole_number


def _parser() -> CommandParser:
    parser = CommandParser(command("verify"), __doc__.partition(": ")[2])
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    resume = commands.add_parser(
        "resume",
        help="train, train again with kill -9 at random times, and compare; all other options are those "
        "of src.train; exit 0 only if both are identical",
    )
    resume.add_argument("--kills", type=whole_number(1), default=5, metavar="N", help="number of kills (5)")
    resume.add_argument(
        "--moments", type=int, default=0, metavar="SEED", help="random seed of the kill times (0)"
    )
    resume.add_argument(
        "--store", choices=("sqlite", "file"), default="sqlite", help="kind of store (sqlite)"
    )
    resume.add_argument("--keep", action="store_true", help="keep what was trained")
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args, options = _parser().parse_known_args(argv)
    from .verification.resume import ResumeCheck

    ResumeCheck(options, args.kills, args.moments, args.store, args.keep).run()


if __name__ == "__main__":
    sys.exit(main())
