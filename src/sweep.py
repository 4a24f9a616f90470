"""``python -m src.sweep``: searches for the best settings; each trial is a training run of its own."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .utils.cli import (
    CommandParser,
    add_setting_options,
    changes_of,
    duration,
    run_command,
    whole_number,
)

if TYPE_CHECKING:
    from .search.searching import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _sweep(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.sweep", __doc__.partition(": ")[2])
    text, count, some = parser.add_argument, whole_number(0), whole_number(1)
    text("--model", metavar="NAMES", default="resnet18", help="several with commas: a search each (resnet18)")
    text("--modality", metavar="TAGS", default="A", help="several with commas: a search each (A)")
    text("--trials", metavar="N", type=some, default=20, help="trials of each search, over all workers (20)")
    text("--space", metavar="FILE", default="config/sweep/default.yaml", help="search space (%(default)s)")
    text("--workers", metavar="N", type=some, default=1, help="trainings at the same time, here (1)")
    text(
        "--timeout",
        metavar="TIME",
        type=duration,
        help="no new trial after this, such as 2h; running ones end",
    )
    add_setting_options(parser)
    text(
        "--storage", metavar="URL", default="", help="database for several machines, such as postgresql://..."
    )
    text("--name", metavar="NAME", default="sweep", help="commands with the same name share a search (sweep)")
    text("--seeds", metavar="N", type=count, default=0, help="train the best settings with N more seeds (0)")
    text(
        "--top",
        metavar="N",
        type=count,
        default=3,
        help="number of best settings for --seeds and --folds (3)",
    )
    text(
        "--folds", metavar="N", type=count, default=0, help="cross-validate the best settings by patient (0)"
    )
    for name in ("--worker", "--plan", "--draw"):  # how the command starts its workers
        text(name, default="", help=argparse.SUPPRESS)
    text("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _sweep(argv: Sequence[str] | None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    from .tracking.store import open_store

    if args.worker:
        open_store()
        _plans(args)[int(args.plan)].work(int(args.worker), int(args.draw))
        return
    from .search.searching import run_search
    from .search.worker import share_cores
    from .tracking import project_run_errors
    from .tracking.project_run import check_project_run

    with project_run_errors():
        check_project_run()
        plans = _plans(args)
        for plan in plans:
            plan.space.check(plan.base)
        open_store()
    share_cores(plans[0].workers)
    until = "" if plans[0].until is None else str(plans[0].until)
    for place, plan in enumerate(plans):
        run_search(plan, [*arguments, "--until", until, "--plan", str(place)])


def _plans(args: argparse.Namespace) -> "list[Plan]":
    """Return one search for each model and modality, in the given order."""
    from pathlib import Path

    from .search.searching import Plan
    from .search.space import Space
    from .utils.config import Config

    space = Space.from_file(Path(args.space))
    until = time.time() + args.timeout if args.timeout and args.until is None else args.until
    plans = []
    for model in args.model.split(","):
        for modality in args.modality.split(","):
            changes = changes_of(args, model.strip(), modality.strip())
            base = Config.from_file(args.config, changes | {"experiment.name": None})  # each trial gets one
            name = f"{args.name}_{base.model.name}_{'-'.join(base.data.modalities)}"
            plans.append(
                Plan(
                    name,
                    base,
                    space,
                    args.trials,
                    args.storage,
                    workers=args.workers,
                    until=until,
                    seeds=args.seeds,
                    top=args.top,
                    folds=args.folds,
                )
            )
    return plans


if __name__ == "__main__":
    sys.exit(main())
