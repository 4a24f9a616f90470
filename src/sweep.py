"""``python -m src.sweep``: searches for the best settings; each trial is a training run of its own."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .tracking import project_run_errors
from .utils.cli import (
    CommandParser,
    add_setting_options,
    changed_settings,
    command,
    command_main,
    duration,
    whole_number,
)


def _parser() -> CommandParser:
    parser = CommandParser(command("sweep"), __doc__.partition(": ")[2])
    _add(parser, "--model", "several with commas: a search each", default="resnet18", metavar="NAMES")
    _add(parser, "--modality", "several with commas: a search each", default="A", metavar="TAGS")
    _add(parser, "--trials", "trials of each search, over all workers", default=20, type=whole_number(1))
    _add(parser, "--space", "search space", default="config/sweep/default.yaml", metavar="FILE")
    _add(parser, "--workers", "training runs at the same time, here", default=1, type=whole_number(1))
    parser.add_argument(
        "--timeout", metavar="TIME", type=duration, help="start no trial after this time, such as 2h"
    )
    add_setting_options(parser)
    parser.add_argument(
        "--storage", metavar="URL", default="", help="database for several machines, such as postgresql://..."
    )
    _add(parser, "--name", "commands with the same name share a search", default="sweep", metavar="NAME")
    _add(parser, "--seeds", "train the best settings with N more seeds", default=0, type=whole_number(0))
    _add(parser, "--top", "number of best settings for --seeds and --folds", default=3, type=whole_number(0))
    _add(parser, "--folds", "cross-validate the best settings by patient", default=0, type=whole_number(0))
    for name in ("--worker", "--plan", "--draw"):  # how the command starts its workers
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _add(parser: CommandParser, name: str, text: str, *, metavar: str = "N", **options: Any) -> None:  # noqa: ANN401
    """Add an option whose help shows its default."""
    parser.add_argument(name, metavar=metavar, help=f"{text} (%(default)s)", **options)


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    from .search.searching import SweepRequest, run_sweep, run_worker

    until = time.time() + args.timeout if args.timeout and args.until is None else args.until
    with nullcontext() if args.worker else project_run_errors():
        changes = [
            changed_settings(args, model.strip(), modality.strip())
            for model in args.model.split(",")
            for modality in args.modality.split(",")
        ]
    request = SweepRequest(
        name=args.name,
        config_file=args.config,
        changes=changes,
        space=Path(args.space),
        trials=args.trials,
        storage=args.storage,
        workers=args.workers,
        until=until,
        seeds=args.seeds,
        top=args.top,
        folds=args.folds,
    )
    if args.worker:
        run_worker(request, int(args.plan), int(args.worker), int(args.draw))
    else:
        run_sweep(request, arguments)


if __name__ == "__main__":
    sys.exit(main())
