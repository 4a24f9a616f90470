"""``python -m src.promote``: the best run of each model and modality, to YAML and to the registry."""

import sys
from collections.abc import Sequence

from .errors import ConfigError
from .tracking import project_run_errors
from .utils.cli import CommandParser, add_flag, command, command_main, number

_LEVEL = 0.05
_auc = number(lambda value: 0 <= value <= 1, "a number between 0 and 1")


def _level(text: str) -> float | None:
    """Return a significance level; ``mlflow run -P significant=true`` gives the usual one."""
    if text.lower() in ("true", "false"):
        return _LEVEL if text.lower() == "true" else None
    return number(lambda value: 0 < value < 1, "a number between 0 and 1, or true")(text)


def _parser() -> CommandParser:
    parser = CommandParser(command("promote"), __doc__.partition(": ")[2])
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


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    with project_run_errors():
        args = _parser().parse_args(argv)
        if args.rollback and args.check:
            raise ConfigError("--rollback and --check exclude each other")
        from .promotion.history import Group
        from .promotion.publish import roll_back
        from .promotion.report import check_and_report, promote_and_report
        from .promotion.select import Request, Rules
        from .tracking.project_run import mark_project_run
        from .tracking.store import open_store

        open_store(must_exist=True)
        mark_project_run("promote")
        if args.check:
            check_and_report(args.model, args.modality)
        elif args.rollback:
            if not (args.model and args.modality):
                raise ConfigError("--rollback needs --model and --modality")
            print(roll_back(Group(args.model, args.modality), dry_run=args.dry_run))
        else:
            rules = Rules(args.min_auc, args.significant, args.force, args.new_data, not args.no_verify)
            data = args.data_fingerprint
            promote_and_report(Request(rules, args.model, args.modality, args.experiment, data, args.dry_run))


if __name__ == "__main__":
    sys.exit(main())
