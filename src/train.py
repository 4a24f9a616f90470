"""``python -m src.train``: one training, tracked as one MLflow run."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MlprojectError, UserError
from .utils.cli import CommandParser, add_flag, add_setting_options, changes_of, config_of, run_command, warn
from .utils.runtime import collection_paused

if TYPE_CHECKING:
    from .data.dataset import Dataset
    from .experiment.resume import ResumableRun
    from .models.input_spec import InputSpec
    from .training.run_folder import RunFolders
    from .training.setup import Setup
    from .utils.config import Config
    from .utils.launch import Together


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _train(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.train", __doc__.partition(": ")[2])
    parser.add_argument(
        "--model", metavar="NAME", help="any classification model of torchvision, such as resnet18"
    )
    parser.add_argument("--modality", metavar="TAG", help="which images, such as A; A+P stacks both")
    add_setting_options(parser)
    parser.add_argument(
        "--rehash", action="store_true", help="read every image again, whatever the cache remembers"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show settings, split and store; start nothing"
    )
    parser.add_argument(
        "--resume", metavar="RUN_ID", help="go on with a run; auto: the unfinished one with these settings"
    )
    parser.add_argument("--parent", metavar="RUN_ID", help="nest the run under this one, such as a sweep's")
    add_flag(parser, "--promote", "afterwards, promote the best run of this model and modality")
    return parser


def _train(argv: Sequence[str] | None) -> None:
    from .utils.launch import together

    with together() as group:
        if group.processes.is_first:
            _lead(argv, group)
        else:
            _follow(argv, group)


def _lead(argv: Sequence[str] | None, group: "Together") -> None:
    """Trains, alone or as the first of several processes: the one that keeps the record."""
    from .tracking import project_run_errors

    with ExitStack() as held:
        with project_run_errors(), collection_paused(), group.named_loss():
            args = _parser().parse_args(argv)
            from .tracking.project_run import check_project_run, mark_project_run, project_run
            from .tracking.store import open_store

            if not args.dry_run:
                check_project_run()
            # Not before: torch and MLflow take seconds, and whoever asks for --help needs neither.
            from .experiment.report_run import run_tags
            from .experiment.session import train

            interrupted = _named_run(args, held)
            config = interrupted.config if interrupted else config_of(args, _changes(args))
            _check_writable(config.output_dir)
            _tell_others(group, config, interrupted)
            dataset = _load(config, rehash=args.rehash)
            if interrupted:
                interrupted.check_data(dataset)
            setup = _set_up(config, dataset, interrupted.spec if interrupted else None, group)
            if args.dry_run:
                _show(setup.config, dataset)
                return
            open_store()
            in_project = project_run() is not None
            tags = run_tags(setup.config, dataset, setup.context)
            interrupted = interrupted or _fitting_run(args, setup.config, tags, held)
            if interrupted:
                interrupted.check_batches(setup.train_step.min_micro_batch)
                mark_project_run("resume")  # `mlflow run` has made one of its own
                _warn_inexact(interrupted, tags)
            folders = interrupted.folders if interrupted else _claim_named(config, held)
        train(setup, dataset, folders, interrupted, group, tags=tags, parent=args.parent)
    if args.promote:
        _promote(setup.config, only_warn=in_project)


def _tell_others(group: "Together", config: "Config", interrupted: "ResumableRun | None") -> None:
    spec = interrupted.spec if interrupted else None
    group.processes.told({"config": config.to_dict(), "input": None if spec is None else spec.to_dict()})


def _follow(argv: Sequence[str] | None, group: "Together") -> None:
    """Train as one of the other ranks, with the settings that rank 0 sends."""
    with collection_paused():
        args = _parser().parse_args(argv)
        from .experiment.session import train_along
        from .models.input_spec import InputSpec
        from .utils.config import Config

        said = group.processes.told()
        config = Config.from_dict(said["config"], "the first process")
        dataset = _load(config, rehash=False)
        spec = None if said["input"] is None else InputSpec.from_dict(said["input"])
        setup = _set_up(config, dataset, spec, group)
    if not args.dry_run:
        train_along(setup, dataset, group)


def _named_run(args: argparse.Namespace, held: ExitStack) -> "ResumableRun | None":
    """Return the run that ``--resume RUN_ID`` names."""
    from .experiment.resume import resume_by_id
    from .tracking.store import open_store
    from .utils.config import Config

    if args.resume in (None, "auto"):
        return None
    open_store(must_exist=True)
    settings = Config.settings_in(args.config) if args.config else {}
    return resume_by_id(args.resume, settings | _changes(args), held)


def _fitting_run(
    args: argparse.Namespace, config: "Config", tags: Mapping[str, str], held: ExitStack
) -> "ResumableRun | None":
    """Return the run that ``--resume auto`` finds; if there is none, a new run starts."""
    from .experiment.resume import resume_auto

    if args.resume != "auto":
        return None
    found = resume_auto(config, tags, held)
    print(f"resuming {found.run_id}" if found else "no unfinished run fits: a new one is started")
    return found


def _warn_inexact(interrupted: "ResumableRun", tags: Mapping[str, str]) -> None:
    if changed := list(interrupted.inexact(tags)):
        warn(
            f"{'; '.join(changed)}: the run goes on, and its numbers may differ in the last digits from "
            "those of a run that was not interrupted"
        )


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    return changes_of(args, args.model, args.modality)


def _check_writable(folder: Path) -> None:
    """Refuses an output folder that cannot be written before anything is computed for it."""
    from .utils.io import check_writable

    try:
        check_writable(folder)
    except OSError as error:
        raise UserError(f"experiment.output_dir: {folder} cannot be written: {error.strerror}") from None


def _load(config: "Config", *, rehash: bool) -> "Dataset":
    from .data.dataset import load_dataset

    dataset = load_dataset(config.data, config.cache_dir, rehash=rehash)
    for message in dataset.warnings:
        warn(message)
    return dataset


def _show(config: "Config", dataset: "Dataset") -> None:
    """Print settings, split and store for ``--dry-run``."""
    from .tracking.store import shown_uri

    print(config.to_yaml())
    _print_split(dataset)
    print(f"store: {shown_uri()}")


def _print_split(dataset: "Dataset") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "class", "images", "patients")
    for split, name, images, patients in dataset.table():
        table.add_row(split, name, str(images), "unknown" if patients is None else str(patients))
    Console().print(table)
    if dataset.aspects:
        print("width / height:", ", ".join(f"{name} {aspect}" for name, aspect in dataset.aspects.items()))
    if len(dataset.classes) == 2:
        print(f"sensitivity is about the class {dataset.classes[1]} (data.positive_class)")


def _set_up(config: "Config", dataset: "Dataset", spec: "InputSpec | None", group: "Together") -> "Setup":
    from .training.setup import set_up
    from .utils.io import sha256

    setup = set_up(config, dataset, spec, group.processes)
    for note in setup.notes:
        warn(note)
    group.processes.check_same(
        {
            "the data's fingerprint": dataset.fingerprint[:12],
            "the split's fingerprint": dataset.split_fingerprint[:12],
            "the network's input": sha256(str(setup.context.spec.to_dict()).encode())[:12],
            "model.weights": setup.config.model.weights,
            "model.stem": setup.config.model.stem,
            "training.precision": setup.config.training.precision,
        }
    )
    return setup


def _claim_named(config: "Config", held: ExitStack) -> "RunFolders | None":
    """Claim the folders of a run with a chosen name; default names contain the run id, known later."""
    from .training.run_folder import RunFolders

    if not config.experiment.name:
        return None
    folders = RunFolders(config.output_dir, config.experiment.name)
    held.enter_context(folders.claimed())
    return folders


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
        warn(f"trained, and not promoted: {error}")


if __name__ == "__main__":
    sys.exit(main())
