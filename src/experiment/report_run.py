"""What a training run records: what is known before the first epoch, and what the best weights give."""

from rich.console import Console
from rich.table import Table

from ..data.dataset import Dataset
from ..data.file_table import FORMAT
from ..evaluation.metrics import optimism
from ..models.input_spec import ServingModel
from ..tracking import names
from ..tracking.run import TrackedRun
from ..tracking.store import ui_instructions
from ..training.checkpoint import TrainerState
from ..training.run_folder import RunFolders
from ..training.scoring import Results, write_results
from ..training.setup import Setup
from ..utils.config import Config
from ..utils.io import atomic_write_text, sha256
from ..utils.runtime import environment

_NEUTRAL = (
    "data.device_cache",
    "training.compile",
    "data.exclude",
    "data.stratify",
    "data.on_near_duplicate",
    "data.near_duplicate_threshold",
    "model.channel_adaptation",
)
"""Settings that change no result, or only the images, which have a fingerprint of their own, or the first
weights, which an interrupted run has left behind; without them the hash is that of earlier versions, too."""
_LATER = {"model.mean": None, "model.std": None, "data.fit": "legacy"}
"""Settings that earlier versions did not have, each with the value that changes nothing."""


def tags_of(setup: Setup, dataset: Dataset) -> dict[str, str]:
    """What a run is found by, and what its result depends on beside config and data."""
    config = setup.config
    # A fold's model has not seen what it could have: no candidate, and not found as one.
    is_fold = config.data.folds is not None
    candidate = {names.MODEL: config.model.name, names.MODALITY: config.modality}
    return {
        **({names.ROLE: names.FOLD} if is_fold else candidate),
        names.DATA_FINGERPRINT: dataset.fingerprint,
        names.SPLIT_FINGERPRINT: dataset.split_fingerprint,
        names.DECODING: str(FORMAT),
        names.CONFIG_SHA256: config_hash(config),
        names.SEED: str(config.training.seed),
        names.ENVIRONMENT + "processes": str(setup.network.processes.count),
        **{f"data.{what}": str(count) for what, count in dataset.counts.items()},
        **{names.ENVIRONMENT + what: str(value) for what, value in environment(setup.network.device).items()},
    }


def config_hash(config: Config) -> str:
    """Return the SHA-256 by which runs with the same settings are found."""
    values = config.flat()
    unset = [key for key, value in _LATER.items() if values[key] == value]
    return sha256(config.to_yaml(without=(*_NEUTRAL, *unset)).encode())


def record_start(run: TrackedRun, setup: Setup, dataset: Dataset, folders: RunFolders) -> None:
    """Records everything that is known before the first epoch; again, where the run goes on."""
    folders.sign(run.run_id)
    atomic_write_text(folders.config, setup.config.to_yaml())
    run.keep_in(folders.results)
    if not run.is_resumed:
        chosen = setup.config.experiment.name
        # A name that says what was trained, unless the user has a better one.
        shown = f"{setup.config.model.name}_{setup.config.modality}_{folders.name.removeprefix('exp_')}"
        run.rename(chosen or shown)
        run.log_params(setup.config.flat() | {"experiment.name": folders.name})
        run.log_dataset(dataset, setup.config.modality)
    run.log_artifact(folders.config)
    count = setup.network.processes.count
    where = (
        f"{setup.network.device}" if count == 1 else f"{count} processes, this one on {setup.network.device}"
    )
    print(f"run {run.run_id} ({folders.name}) on {where}")


def record_results(
    run: TrackedRun,
    setup: Setup,
    dataset: Dataset,
    state: TrainerState,
    results: Results,
    *,
    folders: RunFolders,
) -> None:
    """Records what the best weights leave."""
    tables, pictures = write_results(
        results,
        state,
        dataset.classes,
        predictions=folders.results / names.PREDICTIONS,
        plots=folders.results / names.PLOTS,
    )
    for paths, folder in ((tables, names.PREDICTIONS), (pictures, names.PLOTS)):
        for path in paths:
            run.log_artifact(path, folder)
    run.log_metrics(results.metrics(state), step=state.best_epoch)
    # The same weights are the same model, also after more epochs that were no better.
    if not run.has_model(state.best_epoch):
        _record_model(run, setup, dataset, results, step=state.best_epoch)


def _record_model(run: TrackedRun, setup: Setup, dataset: Dataset, results: Results, *, step: int) -> None:
    run.log_model(
        ServingModel(setup.network.model, setup.network.spec),
        channels=dataset.channels,
        size=dataset.size,
        classes=dataset.classes,
        step=step,
        metadata={
            "threshold": results.threshold,
            "modality": setup.config.modality,
            "window": dataset.window,
        },
    )


def print_summary(
    run: TrackedRun, setup: Setup, state: TrainerState, results: Results, folders: RunFolders
) -> None:
    """Shows the scores, and where everything is."""
    table = Table("split", "AUC", "accuracy", "sensitivity", "specificity", "loss")
    for name, scored in results.splits.items():
        scores = scored.scores
        numbers = (scores.auc, scores.acc, scores.sensitivity, scores.specificity, scores.loss)
        table.add_row(name, *(f"{number:.4f}" for number in numbers))
    Console().print(table)
    print(
        f"best val AUC {state.best_val_auc:.4f} (epoch {state.best_epoch}), threshold {results.threshold:.4f}"
    )
    if (note := optimism(setup.config.evaluation.threshold)) is not None:
        print(note)
    print(f"run          {run.run_id}")
    print(f"files        {folders.results} and {folders.logs}")
    print(f"look at it   {ui_instructions(run.info.experiment_id)}")
