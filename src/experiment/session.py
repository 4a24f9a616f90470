"""One training from its start, or from where it was interrupted, to its end."""

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from ..data.dataset import Dataset
from ..data.file_table import FORMAT
from ..tracking import names
from ..tracking.run import tracked_run
from ..training.checkpoint import CheckpointStore, TrainerState
from ..training.recorder import Keeper, Keeping, NoKeeper
from ..training.run_folder import RunFolders
from ..training.scoring import Results, score_best
from ..training.setup import Setup
from ..training.trainer import Trainer
from ..utils.launch import Together
from ..utils.runtime import determinism
from .report_run import print_summary, record_results, record_start, tags_of
from .resume import Interrupted


def train(
    setup: Setup,
    dataset: Dataset,
    folders: RunFolders | None,
    interrupted: Interrupted | None = None,
    together: Together | None = None,
    *,
    parent: str | None = None,
) -> None:
    """Trains as one tracked run, and prints what came of it.

    Args:
        setup: What is ready to train.
        dataset: The data.
        folders: Those that the caller holds; None makes some whose name has the run's id in it.
        interrupted: The run to go on with, None for a new one.
        together: The other processes, each of which calls `train_along`.
        parent: A run to nest this one under.
    """
    together = together or Together()
    run_id = None if interrupted is None else interrupted.run_id
    # What is shown at the end is shown after the run has ended: a failure of it changes no status.
    with ExitStack() as ended, ExitStack() as held:
        nested = {names.PARENT: parent} if parent else {}
        run = held.enter_context(tracked_run(tags_of(setup, dataset) | nested, run_id))
        held.enter_context(determinism(setup.config.training.deterministic))
        if folders is None:
            folders = RunFolders(setup.config.output_dir, _default_name(run.run_id))
            held.enter_context(folders.claimed())
        record_start(run, setup, dataset, folders)
        keeper = Keeper(
            CheckpointStore(folders.checkpoints),
            folders.history,
            run,
            beside=setup.config.training.save_in_background,
        )
        extra = {
            "run_id": run.run_id,
            "config": setup.config.to_dict(),
            "classes": list(dataset.classes),
            "input": setup.network.spec.to_dict() | {"window": dataset.window},
            "data_fingerprint": dataset.fingerprint,
            "decoding": FORMAT,
            "smallest_pass": setup.optimization.smallest,
        }
        checkpoint = None if interrupted is None else interrupted.checkpoint
        state, results = _train(setup, dataset, together, keeper=keeper, extra=extra, checkpoint=checkpoint)
        record_results(run, setup, dataset, state, results, folders=folders)
        ended.callback(print_summary, run, setup, state, results, folders)


def train_along(setup: Setup, dataset: Dataset, together: Together) -> None:
    """Trains in a process that keeps no record: the first process, which calls `train`, does."""
    with determinism(setup.config.training.deterministic):
        _train(setup, dataset, together, keeper=NoKeeper(), extra={}, checkpoint=None)


def _default_name(run_id: str) -> str:
    return f"exp_{datetime.now():%Y%m%d_%H%M%S}_{run_id[:8]}"


def _train(
    setup: Setup,
    dataset: Dataset,
    together: Together,
    *,
    keeper: Keeping,
    extra: Mapping[str, Any],
    checkpoint: Mapping[str, Any] | None,
) -> tuple[TrainerState, Results]:
    """What every process does; only the first has a checkpoint to go on from, and tells the others."""
    network = setup.network
    with together.in_step():
        checkpoint = network.processes.told(checkpoint)
        trainer = Trainer(setup.config, dataset, network, setup.optimization, keeper=keeper, extra=extra)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        return trainer.fit(), score_best(network, trainer.loader, setup.config)
