"""``python -m src.promote``: the best run of each model and modality, to YAML and to the registry."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .errors import ConfigError, MlprojectError
from .utils.cli import CommandParser, add_flag, run_command

if TYPE_CHECKING:
    from .promotion.select import Request


_NAMED_LEVELS = {"true": "0.05", "false": ""}  # as `mlflow run -P significant=true` has it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(lambda: _promote(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.promote", __doc__.partition(": ")[2])
    parser.add_argument("--model", metavar="NAME", help="only runs of this model")
    parser.add_argument("--modality", metavar="TAG", help="only runs of this modality")
    parser.add_argument("--experiment", metavar="NAME", help="only runs of this experiment")
    parser.add_argument(
        "--data-fingerprint",
        metavar="HEX",
        help="compare on this data (its first digits), not on the newest run's",
    )
    parser.add_argument("--min-auc", metavar="X", help="promote nothing below this val AUC")
    parser.add_argument(
        "--significant",
        metavar="ALPHA",
        nargs="?",
        const="0.05",
        help="promote only a gain whose p value (paired DeLong test), times the number of runs since the "
        "champion, is below ALPHA (0.05 where none is given)",
    )
    add_flag(parser, "--new-data", "let a run replace a champion that was trained on other data")
    add_flag(parser, "--force", "promote the best run, better than the champion or not")
    add_flag(parser, "--no-verify", "do not load the model to check the run's claim")
    add_flag(parser, "--dry-run", "decide and show, change nothing")
    add_flag(parser, "--rollback", "put the previous version back (with --model and --modality)")
    add_flag(parser, "--check", "say whether YAML, registry and history agree; exit 1 if not")
    return parser


def _promote(argv: Sequence[str] | None) -> None:
    from .tracking import project_run_errors

    with project_run_errors():
        args = _parser().parse_args(argv)
        from .promotion.report import promote_and_report
        from .tracking.project_run import mark_project_run
        from .tracking.store import open_store

        request = _request(args)
        open_store(must_exist=True)
        mark_project_run("promote")
        if args.check:
            _check(args)
        elif args.rollback:
            _roll_back(args)
        else:
            promote_and_report(request)


def _request(args: argparse.Namespace) -> "Request":
    from .promotion.select import Request, Rules

    if args.rollback and args.check:
        raise ConfigError("--rollback and --check exclude each other")
    rules = Rules(
        min_auc=_number("--min-auc", args.min_auc, lambda value: 0 <= value <= 1),
        significant=_number(
            "--significant",
            _NAMED_LEVELS.get((args.significant or "").lower(), args.significant),
            lambda value: 0 < value < 1,
        ),
        force=args.force,
        new_data=args.new_data,
        verify=not args.no_verify,
    )
    # An option that is empty says nothing: `mlflow run` passes all of them.
    return Request(
        rules,
        args.model or None,
        args.modality or None,
        args.experiment or None,
        args.data_fingerprint or None,
        args.dry_run,
    )


def _number(option: str, text: str | None, is_allowed: Callable[[float], bool]) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_allowed(value):
        raise ConfigError(f"{option} {text}: a number between 0 and 1 belongs here")
    return value


def _roll_back(args: argparse.Namespace) -> None:
    from .promotion.history import Group
    from .promotion.publish import roll_back

    if not (args.model and args.modality):
        raise ConfigError("--rollback needs --model and --modality")
    print(roll_back(Group(args.model, args.modality), dry_run=args.dry_run))


def _check(args: argparse.Namespace) -> None:
    from .promotion.report import check_consistency

    found = check_consistency(args.model or None, args.modality or None)
    for name, problems in found.items():
        print(f"{name}: {'; '.join(problems) or 'YAML, registry and history agree'}")
    if not found:
        print("nothing was promoted yet")
    wrong = [name for name, problems in found.items() if problems]
    if wrong:
        raise MlprojectError(
            f"not all agree: {', '.join(wrong)}; python -m src.promote makes them equal where a run allows it"
        )


if __name__ == "__main__":
    sys.exit(main())
