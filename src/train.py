"""``python -m src.train``: one training, tracked as one MLflow run."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

from .errors import MlprojectError
from .tracking import project_run_errors
from .utils.cli import (
    CommandParser,
    add_flag,
    add_setting_options,
    changed_settings,
    command,
    command_main,
    warn,
)
from .utils.runtime import gc_paused

if TYPE_CHECKING:
    from .utils.config import Config


def _parser() -> CommandParser:
    parser = CommandParser(command("train"), __doc__.partition(": ")[2])
    parser.add_argument(
        "--model", metavar="NAME", help="any classification model of torchvision, such as resnet18"
    )
    parser.add_argument("--modality", metavar="TAG", help="which images, such as A; A+P stacks both")
    add_setting_options(parser)
    parser.add_argument(
        "--rehash", action="store_true", help="read every image again instead of trusting the cache"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show settings, split and store; start nothing"
    )
    parser.add_argument(
        "--resume", metavar="RUN_ID", help="continue a run; auto: the unfinished one with these settings"
    )
    parser.add_argument("--parent", metavar="RUN_ID", help="nest the run under this one, such as a sweep's")
    add_flag(parser, "--promote", "afterwards, promote the best run of this model and modality")
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    from .utils.distributed import process_group

    with process_group() as group, ExitStack() as locks:
        recorded = project_run_errors() if group.is_main else nullcontext()
        with recorded, gc_paused(), group.report_rank_failure():
            args = _parser().parse_args(argv)
            # Not earlier: torch and MLflow take seconds to import, and --help needs neither.
            from .experiment.prepare import TrainRequest, prepare
            from .tracking.project_run import project_run

            changes = changed_settings(args, args.model, args.modality)
            request = TrainRequest(args.config, changes, args.resume, args.parent, args.rehash, args.dry_run)
            training = prepare(request, group, locks)
            # Read now, because the training run takes the variable out of the environment.
            in_project = training is not None and group.is_main and project_run() is not None
        if training is not None:
            training.run()
    if training is not None and args.promote and group.is_main:
        _promote(training.setup.config, only_warn=in_project)


def _promote(config: "Config", *, only_warn: bool) -> None:
    """Promote after the run has ended: it stays FINISHED if promotion fails."""
    from .promotion.report import promote_and_report
    from .promotion.select import Request

    try:
        promote_and_report(Request(model=config.model.name, modality=config.modality))
    except MlprojectError as error:
        if not only_warn:
            raise
        # An exit status would make `mlflow run` mark the finished training FAILED.
        warn(f"the training run finished, but promotion failed: {error}")


if __name__ == "__main__":
    sys.exit(main())
