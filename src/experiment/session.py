"""One training from its start, or from where it was interrupted, to its end."""

from contextlib import ExitStack
from datetime import datetime

from src.data.dataset import Dataset
from src.experiment.record import print_summary, record_results, record_start, tags_of
from src.experiment.resume import Interrupted
from src.tracking.run import TrackedRun, tracked_run
from src.training.checkpoint import CheckpointStore, TrainerState
from src.training.folders import RunFolders
from src.training.keeper import Keeper
from src.training.setup import Setup
from src.training.trainer import Trainer
from src.utils.runtime import determinism


def train(
    setup: Setup, dataset: Dataset, folders: RunFolders | None, interrupted: Interrupted | None = None
) -> None:
    """Trains as one tracked run, and prints what came of it.

    Args:
        setup: What is ready to train.
        dataset: The data.
        folders: Those that the caller holds; None makes some whose name has the run's id in it.
        interrupted: The run to go on with, None for a new one.
    """
    run_id = None if interrupted is None else interrupted.run_id
    with ExitStack() as held:
        run = held.enter_context(tracked_run(tags_of(setup, dataset), run_id))
        held.enter_context(determinism(setup.config.training.deterministic))
        if folders is None:
            folders = RunFolders(setup.config.output_dir, _default_name(run.run_id))
            held.enter_context(folders.claimed())
        record_start(run, setup, dataset, folders)
        state = _fit(run, setup, dataset, folders, interrupted)
        results = record_results(run, setup, dataset, state, folders)
        print_summary(run, state, results, folders)  # before what a server may have to say at the end


def _default_name(run_id: str) -> str:
    return f"exp_{datetime.now():%Y%m%d_%H%M%S}_{run_id[:8]}"


def _fit(
    run: TrackedRun, setup: Setup, dataset: Dataset, folders: RunFolders, interrupted: Interrupted | None
) -> TrainerState:
    trainer = Trainer(
        setup.config,
        dataset,
        setup.network,
        setup.optimization,
        keeper=Keeper(
            CheckpointStore(folders.checkpoints),
            folders.history,
            run,
            beside=setup.config.training.save_in_background,
        ),
        extra={
            "run_id": run.run_id,
            "config": setup.config.to_dict(),
            "classes": list(dataset.classes),
            "input": setup.network.spec.to_dict() | {"window": dataset.window},
            "data_fingerprint": dataset.fingerprint,
        },
    )
    if interrupted is not None and interrupted.checkpoint is not None:
        trainer.restore(interrupted.checkpoint)
    return trainer.fit()
