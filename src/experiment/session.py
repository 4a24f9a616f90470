"""One training as a tracked run, from its start or from an interruption to its end."""

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from ..data.dataset import Dataset
from ..data.file_table import FORMAT
from ..tracking import names
from ..tracking.run import tracked_run
from ..training.checkpoint import CheckpointStore, TrainerState
from ..training.recorder import Recorder, StateRecorder
from ..training.run_folder import RunFolders
from ..training.scoring import Results, score_best
from ..training.setup import Setup
from ..training.trainer import Trainer
from ..utils.launch import Together
from ..utils.runtime import determinism
from .report_run import RunReport
from .resume import ResumableRun


def train(
    setup: Setup,
    dataset: Dataset,
    folders: RunFolders | None,
    resumed: ResumableRun | None = None,
    together: Together | None = None,
    *,
    tags: Mapping[str, str],
    parent: str | None = None,
) -> None:
    """Train as one tracked run and print the result.

    Args:
        setup: The training to run.
        dataset: The data.
        folders: Folders that the caller has locked; None creates some with the run id in their name.
        resumed: The run to resume, None for a new one.
        together: The other ranks, each of which calls `train_along`.
        tags: Tags of the run.
        parent: Id of the run to nest this one under.
    """
    config, context = setup.config, setup.context
    run_id = None if resumed is None else resumed.run_id
    # The summary is printed after the run has ended, so that a failure of it changes no status.
    with ExitStack() as ended, ExitStack() as held:
        nested = {names.PARENT: parent} if parent else {}
        run = held.enter_context(tracked_run(dict(tags) | nested, run_id))
        held.enter_context(determinism(config.training.deterministic))
        if folders is None:
            name = f"exp_{datetime.now():%Y%m%d_%H%M%S}_{run.run_id[:8]}"
            folders = RunFolders(config.output_dir, name)
            held.enter_context(folders.claimed())
        checkpoint = None if resumed is None else resumed.checkpoint
        report = RunReport(run, folders, config, dataset, context)
        report.start(has_checkpoint=checkpoint is not None)
        recorder = Recorder(
            CheckpointStore(folders.checkpoints),
            folders.history,
            run,
            in_background=config.training.save_in_background,
        )
        extra = {
            "run_id": run.run_id,
            "config": config.to_dict(),
            "classes": list(dataset.classes),
            "input": context.spec.to_dict() | {"window": dataset.window},
            "data_fingerprint": dataset.fingerprint,
            "decoding": FORMAT,
            "smallest_pass": setup.train_step.min_micro_batch,
        }
        together = together or Together()
        state, results = _train(
            setup, dataset, together, recorder=recorder, extra=extra, checkpoint=checkpoint
        )
        report.results(state, results)
        ended.callback(report.print_summary, state, results)


def train_along(setup: Setup, dataset: Dataset, together: Together) -> None:
    """Train in a rank that records nothing; the main rank calls `train`."""
    with determinism(setup.config.training.deterministic):
        _train(setup, dataset, together, recorder=StateRecorder())


def _train(
    setup: Setup,
    dataset: Dataset,
    together: Together,
    *,
    recorder: StateRecorder,
    extra: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> tuple[TrainerState, Results]:
    """Train and score on every rank; the main rank broadcasts the checkpoint to resume from."""
    config, context = setup.config, setup.context
    with together.in_step():
        checkpoint = context.processes.told(checkpoint)
        trainer = Trainer(config, dataset, context, setup.train_step, recorder=recorder, extra=extra or {})
        if checkpoint is not None:
            trainer.restore(checkpoint)
        return trainer.fit(), score_best(context, trainer.loader, config)
