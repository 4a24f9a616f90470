"""Record a training run in the store: tags, settings and data at the start, results at the end."""

from dataclasses import asdict, dataclass

from ..data import image_profile
from ..data.dataset import Dataset
from ..data.file_info import FORMAT
from ..models.forward import ModelContext
from ..models.serving import ServingModel
from ..tracking import names
from ..tracking.run import TrackedRun
from ..tracking.store import ui_instructions
from ..training.checkpoint import TrainerState
from ..training.run_folder import RunFolders
from ..training.scoring import Results, write_results
from ..utils.config import Config
from ..utils.io import atomic_write_text, sha256
from ..utils.output import is_quiet, say
from ..utils.runtime import environment
from .summary import print_scores

_NEUTRAL = (
    "data.device_cache",
    "training.compile",
    "data.exclude",
    "data.columns",
    "data.images",
    "data.where",
    "data.classes",
    "data.stratify",
    "data.on_near_duplicate",
    "data.near_duplicate_threshold",
    "model.channel_adaptation",
)
"""Settings that the config hash leaves out, so that earlier versions have the same hash.

They change no result, or only the images (which have their own fingerprint) or the initial weights (which a
resumed run has in its checkpoint).
"""
_LATER = {"model.mean": None, "model.std": None, "data.fit": "legacy"}
"""Settings that the config hash leaves out at these values, which are those of earlier versions."""


def run_tags(config: Config, dataset: Dataset, context: ModelContext) -> dict[str, str]:
    """Return the tags by which a run is found, and those of everything that its result depends on."""
    # The model of a fold has seen less data than it could, so it is not a candidate for promotion.
    is_fold = config.data.folds is not None
    candidate = {names.MODEL: config.model.name, names.MODALITY: config.modality}
    return {
        **({names.ROLE: names.FOLD} if is_fold else candidate),
        names.DATA_FINGERPRINT: dataset.fingerprint,
        names.SPLIT_FINGERPRINT: dataset.split_fingerprint,
        names.DECODER_VERSION: str(FORMAT),
        names.CONFIG_SHA256: config_hash(config),
        names.SEED: str(config.training.seed),
        names.ENV_PREFIX + "processes": str(context.process_group.world_size),
        **{f"data.{what}": str(count) for what, count in dataset.counts.items()},
        **{names.ENV_PREFIX + what: str(value) for what, value in environment(context.device).items()},
    }


def config_hash(config: Config) -> str:
    """Return the SHA-256 of the settings; ``--resume auto`` searches for runs with the same hash."""
    values = config.flat()
    unset = [key for key, value in _LATER.items() if values[key] == value]
    return sha256(config.to_yaml(without=(*_NEUTRAL, *unset)).encode())


@dataclass(frozen=True)
class RunReport:
    """Records the start and the results of one run in the store and in its folders."""

    run: TrackedRun
    folders: RunFolders
    config: Config
    dataset: Dataset
    context: ModelContext

    def start(self, *, has_checkpoint: bool) -> None:
        """Record everything that is known before the first epoch.

        Args:
            has_checkpoint: Whether the run is resumed from a checkpoint, and all of this was recorded before.
        """
        run, folders, chosen = self.run, self.folders, self.config.experiment.name
        folders.write_run_id(run.run_id)
        atomic_write_text(folders.config, self.config.to_yaml())
        run.keep_in(folders.results)
        if not has_checkpoint:
            # The name in MLflow describes the training unless the user has chosen one.
            described = f"{self.config.model.name}_{self.config.modality}_{folders.name.removeprefix('exp_')}"
            run.rename(chosen or described)
            run.log_params(self.config.flat() | {"experiment.name": folders.name})
            run.log_dataset(self.dataset, self.config.modality)
        run.log_artifact(folders.config)
        count, device = self.context.process_group.world_size, self.context.device
        where = f"{device}" if count == 1 else f"{count} processes, this one on {device}"
        say(f"run {run.run_id} ({folders.name}) on {where}")

    def results(self, state: TrainerState, results: Results) -> None:
        """Record predictions, plots, metrics and the model of the best weights."""
        tables, figures = write_results(
            results,
            state,
            self.dataset.classes,
            predictions=self.folders.results / names.PREDICTIONS,
            plots=self.folders.results / names.PLOTS,
        )
        for paths, folder in ((tables, names.PREDICTIONS), (figures, names.PLOTS)):
            for path in paths:
                self.run.log_artifact(path, folder)
        self.run.log_metrics(results.metrics(state), step=state.best_epoch)
        # A run that was resumed without improving has logged this model already.
        if not self.run.has_model(state.best_epoch):
            self._log_model(results.threshold, step=state.best_epoch)

    def _log_model(self, threshold: float, *, step: int) -> None:
        self.run.log_model(
            ServingModel(self.context.model, self.context.spec),
            channels=self.dataset.channels,
            size=self.dataset.size,
            classes=self.dataset.classes,
            step=step,
            metadata={
                "threshold": threshold,
                "modality": self.config.modality,
                "window": self.dataset.window,
                image_profile.KEY: list(map(asdict, self.dataset.profiles)),
            },
        )

    def print_summary(self, state: TrainerState, results: Results) -> None:
        """Print the scores and the locations of all outputs."""
        if is_quiet():
            return
        print_scores(self.dataset, state, results, self.config.evaluation.threshold)
        print(f"run          {self.run.run_id}")
        print(f"files        {self.folders.results} and {self.folders.logs}")
        print(f"look at it   {ui_instructions(self.run.info.experiment_id)}")
