"""``python -m src.cleanup``: frees disk of what no longer matters; shows the plan, and waits for --apply."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError
from .utils.cli import CommandParser, add_flag, run_command

if TYPE_CHECKING:
    from .retention.cleaning import Survey
    from .retention.plan import Rules

_WIDE = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(lambda: _cleanup(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.cleanup", __doc__.partition(": ")[2])
    parser.add_argument(
        "--keep-best", metavar="N", help="runs of each model, modality and data, by val AUC (3)"
    )
    parser.add_argument("--keep-days", metavar="DAYS", help="everything that ended less long ago (7)")
    add_flag(parser, "--runs", "remove whole runs, and not their checkpoints alone")
    parser.add_argument("--output-dir", metavar="DIR", help="where runs keep their files (outputs)")
    add_flag(parser, "--apply", "remove; without it nothing is changed")
    return parser


def _cleanup(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    from .retention.cleaning import clean, survey
    from .tracking import project_run_errors
    from .tracking.project_run import mark_project_run
    from .tracking.store import open_store, quiet_client

    with project_run_errors():
        rules = _rules(args)
        output = Path(args.output_dir or "outputs")
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


def _rules(args: argparse.Namespace) -> "Rules":
    from .retention.plan import Rules

    best = _number("--keep-best", args.keep_best or "3")
    if best != int(best):
        raise ConfigError(f"--keep-best {args.keep_best}: a whole number belongs here")
    return Rules(int(best), _number("--keep-days", args.keep_days or "7"), bool(args.runs))


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{option} {text}: a number from 0 belongs here")
    return value


def _show(found: "Survey") -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from .utils.leftovers import shown
    from .utils.progress import is_interactive

    table = Table("remove", "of", "size", "why")
    for removal in found.removals:
        table.add_row(removal.what, escape(removal.name), decimal(removal.size), escape(removal.reason))
    console = Console(width=None if is_interactive() else _WIDE, highlight=False)
    if found.removals:
        console.print(table)
    for path in (path for removal in found.removals for path in removal.paths):
        print(f"path         {shown(path)}")
    for line in found.left:
        print(f"left alone   {line}")
    kept = Counter(v.reason.partition(":")[0] for v in found.verdicts if v.action == "keep")
    told = "; ".join(f"{count} {reason}" for reason, count in kept.most_common())
    print(f"kept whole   {told or 'no runs'}")
    print(f"to remove    {len(found.removals)} things, {decimal(sum(r.size for r in found.removals))}")


if __name__ == "__main__":
    sys.exit(main())
