"""Prepare a training: load the data, build the model, find the run to resume, and claim its folders."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ..data.dataset import Dataset, load_dataset
from ..data.name_checks import is_like_negative
from ..errors import UserError
from ..models.input_spec import InputSpec
from ..tracking.project_run import check_project_run, mark_project_run
from ..tracking.store import open_store, shown_uri
from ..training.run_folder import RunFolders
from ..training.setup import Setup, set_up
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.distributed import ProcessGroup
from ..utils.io import check_writable, sha256
from ..utils.output import say
from ..utils.project import project_folder
from .report_run import run_tags
from .resume import ResumableRun, resume_auto, resume_by_id
from .session import Training

_INEXACT = (
    "the run continues, but its numbers may differ in the last digits from those without an interruption"
)


@dataclass(frozen=True)
class TrainRequest:
    """Arguments of ``python -m src.train``.

    Attributes:
        config_file: A settings file; None for the defaults.
        changes: Settings that override it, by dotted key.
        resume: Id of a run to resume; ``auto`` for the unfinished run with the same settings and data, if
            there is one; None for a new run.
        parent: Id of the run to nest the new run under.
        rehash: Whether to read every image again instead of trusting the cache.
        dry_run: Whether only to print settings, split and store.
    """

    config_file: str | None
    changes: Mapping[str, Any]
    resume: str | None = None
    parent: str | None = None
    rehash: bool = False
    dry_run: bool = False


def prepare(request: TrainRequest, group: ProcessGroup, locks: ExitStack) -> Training | None:
    """Return the training run, ready to start; None after a dry run.

    Args:
        request: The arguments of the command.
        group: The ranks; the main rank sends the settings to the others.
        locks: Keeps the lock of the run's folders.

    Raises:
        MlprojectError: The settings, the data or the run to resume are refused.
    """
    if not group.is_main:
        return _prepare_other_rank(request, group)
    if not request.dry_run:
        check_project_run()
    resumed = _run_to_resume(request, locks)
    config = resumed.config if resumed else Config.from_file(request.config_file, request.changes)
    try:  # before anything is computed
        check_writable(config.output_dir)
    except OSError as error:
        is_beside = config.output_dir.is_absolute() and config.output_dir.is_relative_to(project_folder())
        beside = " (beside the store of MLFLOW_TRACKING_URI)" if is_beside else ""
        raise UserError(
            f"experiment.output_dir: {config.output_dir}{beside} cannot be written: {error.strerror}"
        ) from None
    spec = resumed.spec if resumed else None
    group.broadcast_object({"config": config.to_dict(), "input": None if spec is None else spec.to_dict()})
    dataset = _load(config, rehash=request.rehash)
    if resumed:
        resumed.check_data(dataset)
    setup = _set_up(config, dataset, spec, group)
    if request.dry_run:
        _print_plan(setup.config, dataset)
        return None
    open_store()
    _print_positive_class(setup.config, dataset)
    tags = run_tags(setup.config, dataset, setup.context)
    if request.resume == "auto":  # needs the fingerprints, which are known only now
        resumed = resume_auto(setup.config, tags, locks)
        say(f"resuming {resumed.run_id}" if resumed else "no matching unfinished run; starting a new one")
    if resumed:
        resumed.check_batches(setup.train_step.min_micro_batch)
        mark_project_run("resume")  # so that the extra run of `mlflow run` does not count as a training run
        if changed := list(resumed.inexact(tags)):
            warn(f"{'; '.join(changed)}: {_INEXACT}")
    folders = resumed.folders if resumed else _claim_chosen_folders(config, locks)
    return Training(setup, dataset, tags, folders, resumed, request.parent)


def _prepare_other_rank(request: TrainRequest, group: ProcessGroup) -> Training | None:
    received = group.broadcast_object()
    config = Config.from_dict(received["config"], "the main rank")
    dataset = _load(config, rehash=False)
    spec = None if received["input"] is None else InputSpec.from_dict(received["input"])
    setup = _set_up(config, dataset, spec, group)
    return None if request.dry_run else Training(setup, dataset)


def _run_to_resume(request: TrainRequest, locks: ExitStack) -> ResumableRun | None:
    """Return the run that ``--resume RUN_ID`` names."""
    if request.resume in (None, "auto"):
        return None
    open_store(must_exist=True)
    settings = Config.settings_in(request.config_file) if request.config_file else {}
    return resume_by_id(request.resume, settings | dict(request.changes), locks)


def _load(config: Config, *, rehash: bool) -> Dataset:
    dataset = load_dataset(config.data, config.cache_dir, rehash=rehash)
    for message in dataset.warnings:
        warn(message)
    return dataset


def _set_up(config: Config, dataset: Dataset, spec: InputSpec | None, group: ProcessGroup) -> Setup:
    setup = set_up(config, dataset, spec, group)
    for note in setup.notes:
        warn(note)
    group.check_same(
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


def _claim_chosen_folders(config: Config, locks: ExitStack) -> RunFolders | None:
    """Claim the folders of a run with a chosen name; default names contain the run id."""
    if not config.experiment.name:
        return None
    folders = RunFolders(config.output_dir, config.experiment.name)
    locks.enter_context(folders.create_and_lock())
    return folders


def _print_positive_class(config: Config, dataset: Dataset) -> None:
    """Print which of two classes is positive; warn if it looks like the negative and was not chosen."""
    if len(dataset.classes) != 2:
        return
    other, positive = dataset.classes
    say(f"sensitivity is about the class {positive} (data.positive_class)")
    if config.data.positive_class is None and is_like_negative(positive):
        warn(
            f"the class {positive}, the last by name, looks like the negative one; for sensitivity about "
            f"{other}, set data.positive_class={other}"
        )


def _print_plan(config: Config, dataset: Dataset) -> None:
    print(config.to_yaml())
    table = Table("split", "class", "images", "patients")
    for split, name, images, patients in dataset.table():
        table.add_row(split, name, str(images), "unknown" if patients is None else str(patients))
    Console().print(table)
    if dataset.aspects:
        print("width / height:", ", ".join(f"{name} {aspect}" for name, aspect in dataset.aspects.items()))
    _print_positive_class(config, dataset)
    print(f"store: {shown_uri()}")
