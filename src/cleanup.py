"""``python -m src.cleanup``: frees disk of what no longer matters; shows the plan, and waits for --apply."""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .utils.cli import CommandParser, add_flag, number, run_command, whole_number

if TYPE_CHECKING:
    from .retention.cleaning import Survey

_WIDE = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _cleanup(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.cleanup", __doc__.partition(": ")[2])
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


def _cleanup(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    from .retention.cleaning import clean, survey
    from .retention.plan import Rules
    from .tracking import project_run_errors
    from .tracking.project_run import mark_project_run
    from .tracking.store import open_store, quiet_client

    with project_run_errors():
        rules = Rules(args.keep_best, args.keep_days, args.runs)
        output = Path(args.output_dir)
        open_store(must_exist=True)
        mark_project_run("cleanup")
        with quiet_client():
            found = survey(output, rules)
            _show(found)
            if not args.apply:
                print("nothing was changed; --apply removes what is listed")
                return
            from rich.filesize import decimal

            print(f"freed {decimal(clean(found.removals))}")


def _show(found: "Survey") -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from .utils.console import is_interactive
    from .utils.io import relative_to_cwd

    table = Table("remove", "of", "size", "why")
    for removal in found.removals:
        table.add_row(removal.what, escape(removal.name), decimal(removal.size), escape(removal.reason))
    console = Console(width=None if is_interactive() else _WIDE, highlight=False)
    if found.removals:
        console.print(table)
    for path in (path for removal in found.removals for path in removal.paths):
        print(f"path         {relative_to_cwd(path)}")
    for line in found.left:
        print(f"left alone   {line}")
    kept = Counter(v.reason.partition(":")[0] for v in found.verdicts if v.action == "keep")
    told = "; ".join(f"{count} {reason}" for reason, count in kept.most_common())
    print(f"kept whole   {told or 'no runs'}")
    print(f"to remove    {len(found.removals)} things, {decimal(sum(r.size for r in found.removals))}")


if __name__ == "__main__":
    sys.exit(main())
