"""Run one training, new or resumed, as a tracked run."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..data.dataset import Dataset
from ..data.file_info import FORMAT
from ..tracking import names
from ..tracking.run import tracked_run
from ..training.checkpoint import CheckpointStore, TrainerState
from ..training.recorder import Recorder, StateRecorder
from ..training.run_folder import RunFolders
from ..training.scoring import Results, score_best
from ..training.setup import Setup
from ..training.trainer import Trainer
from ..utils.runtime import determinism
from .report_run import RunReport
from .resume import ResumableRun


@dataclass(frozen=True)
class Training:
    """A training that is ready to start.

    Attributes:
        setup: The settings, the model and the training step.
        dataset: The data.
        tags: Tags of the run.
        folders: Folders that the caller has locked; None for new ones, whose names contain the run id.
        resumed: The run to resume, None for a new one.
        parent: Id of the run to nest this one under.
    """

    setup: Setup
    dataset: Dataset
    tags: Mapping[str, str] = field(default_factory=dict)
    folders: RunFolders | None = None
    resumed: ResumableRun | None = None
    parent: str | None = None

    def run(self) -> None:
        """Train; the main rank tracks the run and prints its results."""
        with ExitStack() as after_run:
            if self.setup.context.process_group.is_main:
                self._run_tracked(after_run)
            else:
                with determinism(self.setup.config.training.deterministic):
                    self._train(StateRecorder())

    def _run_tracked(self, after_run: ExitStack) -> None:
        config, context, resumed = self.setup.config, self.setup.context, self.resumed
        nested = {names.PARENT_RUN_ID: self.parent} if self.parent else {}
        with (
            tracked_run(dict(self.tags) | nested, None if resumed is None else resumed.run_id) as run,
            determinism(config.training.deterministic),
            ExitStack() as locks,
        ):
            folders = self.folders
            if folders is None:
                name = f"exp_{datetime.now():%Y%m%d_%H%M%S}_{run.run_id[:8]}"
                folders = RunFolders(config.output_dir, name)
                locks.enter_context(folders.create_and_lock())
            checkpoint = None if resumed is None else resumed.checkpoint
            report = RunReport(run, folders, config, self.dataset, context)
            report.start(has_checkpoint=checkpoint is not None)
            recorder = Recorder(
                CheckpointStore(folders.checkpoints),
                folders.history,
                run,
                in_background=config.training.save_in_background,
            )
            state, results = self._train(recorder, self._checkpoint_extra(run.run_id), checkpoint)
            report.results(state, results)
            # Printed after the run has ended, so that an error while printing changes no status.
            after_run.callback(report.print_summary, state, results)

    def _train(
        self,
        recorder: StateRecorder,
        extra: Mapping[str, Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
    ) -> tuple[TrainerState, Results]:
        """Train and score on every rank, from the checkpoint of the main rank."""
        config, context = self.setup.config, self.setup.context
        with context.process_group.synchronized():
            checkpoint = context.process_group.broadcast_object(checkpoint)
            trainer = Trainer(
                config, self.dataset, context, self.setup.train_step, recorder=recorder, extra=extra or {}
            )
            if checkpoint is not None:
                trainer.restore(checkpoint)
            state = trainer.fit()  # leaves the best weights in the model
            return state, score_best(context, trainer.loader, config)

    def _checkpoint_extra(self, run_id: str) -> dict[str, Any]:
        """Return what every checkpoint contains in addition to the trainer's state."""
        return {
            "run_id": run_id,
            "config": self.setup.config.to_dict(),
            "classes": list(self.dataset.classes),
            "input": self.setup.context.spec.to_dict() | {"window": self.dataset.window},
            "data_fingerprint": self.dataset.fingerprint,
            "decoding": FORMAT,
            # The key of earlier checkpoints.
            "smallest_pass": self.setup.train_step.min_micro_batch,
        }
