"""``python -m src.sweep``: searches for the best settings; each trial is a training run of its own."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import ConfigError
from .utils.cli import CommandParser, run_command
from .utils.options import add_setting_options, changes_of, config_of

if TYPE_CHECKING:
    from .search.searching import Plan

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(lambda: _sweep(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.sweep", __doc__.partition(": ")[2])
    parser.add_argument(
        "--model", metavar="NAMES", help="such as resnet18; several with commas: a search each"
    )
    parser.add_argument("--modality", metavar="TAGS", help="such as A; several with commas: a search each")
    parser.add_argument("--trials", metavar="N", help="trials of each search, over all workers; 20")
    parser.add_argument("--space", metavar="FILE", help="what is tried; config/sweep/default.yaml")
    parser.add_argument("--workers", metavar="N", help="processes here that train at the same time; 1")
    parser.add_argument(
        "--timeout", metavar="TIME", help="no new trial after this, such as 2h; those begun come to their end"
    )
    add_setting_options(parser)
    parser.add_argument(
        "--storage", metavar="URL", help="a database for several machines, such as postgresql://...; a file"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="commands with the same name work on one search; sweep"
    )
    parser.add_argument("--seeds", metavar="N", help="train the best settings again with N other seeds; 0")
    parser.add_argument("--top", metavar="N", help="how many settings those are; 3")
    parser.add_argument("--folds", metavar="N", help="cross-validate the best settings by patient; 0")
    for name in ("--worker", "--plan", "--until", "--draw"):  # how the command starts its workers
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
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
    """A search for each model and modality, in the order they are named."""
    from pathlib import Path

    from .search.searching import Plan
    from .search.space import Space

    space = Space.from_file(Path(args.space or "config/sweep/default.yaml"))
    until = float(args.until) if args.until else _end(args.timeout)
    plans = []
    for model in (args.model or "resnet18").split(","):
        for modality in (args.modality or "A").split(","):
            changes = changes_of(args, model.strip(), modality.strip())
            base = config_of(args, changes | {"experiment.name": None})  # each trial gets one
            name = f"{args.name or 'sweep'}_{base.model.name}_{'-'.join(base.data.modalities)}"
            plans.append(
                Plan(
                    name,
                    base,
                    space,
                    _count(args.trials, "--trials", 20),
                    args.storage or "",
                    workers=_count(args.workers, "--workers", 1),
                    until=until,
                    seeds=_count(args.seeds, "--seeds", 0),
                    top=_count(args.top, "--top", 3),
                    folds=_count(args.folds, "--folds", 0),
                )
            )
    return plans


def _count(text: str | None, option: str, default: int) -> int:
    if not text:
        return default
    if not text.isdecimal():
        raise ConfigError(f"{option}: {text!r} is no whole number")
    return int(text)


def _end(text: str | None) -> float | None:
    """When a span from now is over, in seconds of the clock."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise ConfigError(f"--timeout: {text!r} is no time such as 90s, 30m, 2h or 1d")
    return time.time() + float(found[1]) * _UNITS[found[2]]


if __name__ == "__main__":
    sys.exit(main())
