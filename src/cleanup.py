"""``python -m src.cleanup``: frees disk space of old runs; without --apply, it only shows the plan."""

import math
import sys
from collections.abc import Sequence

from .tracking import project_run_errors
from .utils.cli import CommandParser, add_flag, command, command_main, number, whole_number
from .utils.project import in_project


def _parser() -> CommandParser:
    parser = CommandParser(command("cleanup"), __doc__.partition(": ")[2])
    parser.add_argument(
        "--keep-best",
        metavar="N",
        type=whole_number(0),
        default=3,
        help="runs of each model, modality and data with the highest val AUC (3)",
    )
    parser.add_argument(
        "--keep-days",
        metavar="DAYS",
        type=number(lambda days: 0 <= days < math.inf, "a number of days from 0"),
        default=7.0,
        help="runs that ended within this many days (7)",
    )
    add_flag(parser, "--runs", "remove whole runs, and not their checkpoints alone")
    parser.add_argument(
        "--output-dir", metavar="DIR", default="outputs", help="where runs keep their files (outputs)"
    )
    add_flag(parser, "--apply", "remove; without it nothing is changed")
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    from .retention.cleaning import clean_up
    from .retention.plan import Rules

    with project_run_errors():
        rules = Rules(args.keep_best, args.keep_days, args.runs)
        clean_up(in_project(args.output_dir), rules, apply=args.apply)


if __name__ == "__main__":
    sys.exit(main())
