"""``python -m src.promote``: the best run of each model and modality, to YAML and to the registry."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import ConfigError, MlprojectError
from .utils.cli import CommandParser, add_flag, number, run_command

if TYPE_CHECKING:
    from .promotion.select import Request


_LEVEL = 0.05


_auc = number(lambda value: 0 <= value <= 1, "a number between 0 and 1")


def _level(text: str) -> float | None:
    """Return a significance level; ``mlflow run -P significant=true`` gives the usual one."""
    if text.lower() in ("true", "false"):
        return _LEVEL if text.lower() == "true" else None
    return number(lambda value: 0 < value < 1, "a number between 0 and 1, or true")(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
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
    parser.add_argument("--min-auc", metavar="X", type=_auc, help="promote nothing below this val AUC")
    parser.add_argument(
        "--significant",
        metavar="ALPHA",
        nargs="?",
        const=_LEVEL,
        type=_level,
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
        min_auc=args.min_auc,
        significant=args.significant,
        force=args.force,
        new_data=args.new_data,
        verify=not args.no_verify,
    )
    return Request(rules, args.model, args.modality, args.experiment, args.data_fingerprint, args.dry_run)


def _roll_back(args: argparse.Namespace) -> None:
    from .promotion.history import Group
    from .promotion.publish import roll_back

    if not (args.model and args.modality):
        raise ConfigError("--rollback needs --model and --modality")
    print(roll_back(Group(args.model, args.modality), dry_run=args.dry_run))


def _check(args: argparse.Namespace) -> None:
    from .promotion.report import check_consistency

    found = check_consistency(args.model, args.modality)
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
