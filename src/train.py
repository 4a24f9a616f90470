"""``python -m src.train``: one training, tracked as one MLflow run."""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import MlprojectError, UserError
from src.utils.cli import CommandParser, add_flag, run_command, warn

if TYPE_CHECKING:
    from src.data.dataset import Dataset
    from src.tracking.run import TrackedRun
    from src.training.checkpoint import TrainerState
    from src.training.folders import RunFolders
    from src.training.results import Results
    from src.training.setup import Setup
    from src.utils.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(lambda: _train(argv))


def _parser() -> CommandParser:
    parser = CommandParser("python -m src.train", __doc__.partition(": ")[2])
    parser.add_argument("--config", metavar="FILE", help="YAML; config/default_config.yaml shows all")
    parser.add_argument(
        "--model", metavar="NAME", help="any classification model of torchvision, such as resnet18"
    )
    parser.add_argument("--modality", metavar="TAG", help="which images, such as A; A+P stacks both")
    parser.add_argument("--data", metavar="PATH", help="demo, a folder, a manifest.csv, or a MedMNIST .npz")
    parser.add_argument("--epochs", metavar="N", help="passes over the training split")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any setting by its dotted key"
    )
    parser.add_argument("--overrides", metavar="LIST", default="", help="the same, comma-separated")
    parser.add_argument(
        "--rehash", action="store_true", help="read every image again, whatever the cache remembers"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show settings, split and store; start nothing"
    )
    add_flag(parser, "--promote", "afterwards, promote the best run of this model and modality")
    return parser


def _train(argv: Sequence[str] | None) -> None:
    from src.tracking.run import is_project_run, project_run_told
    from src.tracking.store import open_store

    in_project = is_project_run()  # before MLflow takes the run over and forgets
    with project_run_told():
        args = _parser().parse_args(argv)
        config = _read_config(args)
        _check_writable(_output(config))
        dataset = _load(config, rehash=args.rehash)
        setup = _set_up(config, dataset)
        if args.dry_run:
            _show(setup.config, dataset)
            return
        open_store()
        folders = _claim_named(config)
    _run(setup, dataset, folders)
    if args.promote:
        _promote(setup.config, only_warn=in_project)


def _read_config(args: argparse.Namespace) -> "Config":
    """Settings by precedence: --set over named options over the file over defaults."""
    from src.utils.config import Config, modernized
    from src.utils.dotted import merge_dotted, parse_overrides, split_overrides
    from src.utils.yaml_files import parse_yaml, read_yaml

    values = modernized(read_yaml(Path(args.config)), args.config) if args.config else {}
    # An option that is empty says nothing: `mlflow run` passes all of them.
    changes: dict[str, Any] = {}
    if args.model:
        changes["model.name"] = args.model
    if args.modality:
        changes["data.modalities"] = args.modality.split("+")
    if args.data:
        changes["data.root_dir"] = args.data
    if args.epochs:
        changes["training.epochs"] = parse_yaml(args.epochs, "--epochs")
    changes |= parse_overrides([*split_overrides(args.overrides), *args.set])
    return Config.from_dict(merge_dotted(values, changes), args.config or "settings")


def _check_writable(folder: Path) -> None:
    """Refuses an output folder that cannot be written before anything is computed for it."""
    from src.utils.io import check_writable

    try:
        check_writable(folder)
    except OSError as error:
        raise UserError(f"experiment.output_dir: {folder} cannot be written: {error.strerror}") from None


def _load(config: "Config", *, rehash: bool) -> "Dataset":
    from src.data.dataset import load_dataset

    dataset = load_dataset(config.data, config.cache_dir, rehash=rehash)
    for message in dataset.warnings:
        warn(message)
    return dataset


def _show(config: "Config", dataset: "Dataset") -> None:
    """The answer to --dry-run."""
    from src.tracking.store import shown_uri

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
    if len(dataset.classes) == 2:
        print(f"sensitivity is about the class {dataset.classes[1]} (data.positive_class)")


def _set_up(config: "Config", dataset: "Dataset") -> "Setup":
    from src.training.setup import set_up

    setup = set_up(config, dataset)
    for note in setup.notes:
        warn(note)
    return setup


def _claim_named(config: "Config") -> "RunFolders | None":
    """The folders of a run that the user has named; other names hold the run's id, so they come later."""
    from src.training.folders import RunFolders

    name = config.experiment.name
    return RunFolders(_output(config), name).claim() if name else None


def _output(config: "Config") -> Path:
    return Path(config.experiment.output_dir).expanduser()


def _run(setup: "Setup", dataset: "Dataset", folders: "RunFolders | None") -> None:
    from src.tracking.run import tracked_run
    from src.training.folders import RunFolders
    from src.utils.runtime import determinism

    settings = setup.config.training
    with tracked_run(_tags(setup.config, dataset)) as run, determinism(settings.deterministic):
        folders = folders or RunFolders(_output(setup.config), _default_name(run.run_id)).claim()
        _record_start(run, setup, dataset, folders)
        state = _fit(run, setup, dataset, folders)
        results = _record_results(run, setup, dataset, state, folders)
        _print_summary(run, state, results, folders)  # before what a server may have to say at the end


def _promote(config: "Config", *, only_warn: bool) -> None:
    """After the end of the run, which is FINISHED whatever comes of this."""
    from src.promotion.decide import Request
    from src.promotion.show import promote_and_show

    try:
        promote_and_show(Request(model=config.model.name, modality=config.modality))
    except MlprojectError as error:
        if not only_warn:
            raise
        # An exit status would make `mlflow run` mark the finished training FAILED.
        warn(f"trained, and not promoted: {error}")


def _default_name(run_id: str) -> str:
    return f"exp_{datetime.now():%Y%m%d_%H%M%S}_{run_id[:8]}"


def _tags(config: "Config", dataset: "Dataset") -> dict[str, str]:
    from src.tracking import names
    from src.utils.io import sha256
    from src.utils.runtime import environment

    return {
        names.MODEL: config.model.name,
        names.MODALITY: config.modality,
        names.DATA_FINGERPRINT: dataset.fingerprint,
        names.SPLIT_FINGERPRINT: dataset.split_fingerprint,
        names.CONFIG_SHA256: sha256(config.to_yaml().encode()),
        names.SEED: str(config.training.seed),
        **{f"data.{what}": str(count) for what, count in dataset.counts.items()},
        **{f"env.{what}": str(value) for what, value in environment().items()},
    }


def _record_start(run: "TrackedRun", setup: "Setup", dataset: "Dataset", folders: "RunFolders") -> None:
    """Everything that is known before the first epoch."""
    from src.utils.io import atomic_write_text

    atomic_write_text(folders.config, setup.config.to_yaml())
    chosen = setup.config.experiment.name
    # A name that says what was trained, unless the user has a better one.
    run.rename(
        chosen or f"{setup.config.model.name}_{setup.config.modality}_{folders.name.removeprefix('exp_')}"
    )
    run.log_params(setup.config.flat() | {"experiment.name": folders.name})
    run.log_dataset(dataset, setup.config.modality)
    run.keep_in(folders.results)
    run.log_artifact(folders.config)
    print(f"run {run.run_id} ({folders.name}) on {setup.network.device}")


def _fit(run: "TrackedRun", setup: "Setup", dataset: "Dataset", folders: "RunFolders") -> "TrainerState":
    from src.training.checkpoint import CheckpointStore
    from src.training.trainer import Trainer

    trainer = Trainer(
        setup.config,
        dataset,
        setup.network,
        setup.optimization,
        checkpoints=CheckpointStore(folders.checkpoints),
        history_path=folders.history,
        tracker=run,
        extra={
            "run_id": run.run_id,
            "config": setup.config.to_dict(),
            "classes": list(dataset.classes),
            "input": setup.network.spec.to_dict() | {"window": dataset.window},
            "data_fingerprint": dataset.fingerprint,
        },
    )
    return trainer.fit()


def _record_results(
    run: "TrackedRun", setup: "Setup", dataset: "Dataset", state: "TrainerState", folders: "RunFolders"
) -> "Results":
    """Scores the best weights, on test for the only time, and logs what they leave."""
    from src.models.serving import ServingModel
    from src.tracking.names import PLOTS, PREDICTIONS
    from src.training.results import score_best, write_results

    results = score_best(setup.network, dataset, setup.config)
    tables, pictures = write_results(
        results,
        state,
        dataset.classes,
        predictions=folders.results / PREDICTIONS,
        plots=folders.results / PLOTS,
    )
    for path, folder in [(p, PREDICTIONS) for p in tables] + [(p, PLOTS) for p in pictures]:
        run.log_artifact(path, folder)
    run.log_metrics(results.metrics(state), step=state.best_epoch)
    run.log_model(
        ServingModel(setup.network.model, setup.network.spec),
        channels=dataset.channels,
        size=dataset.size,
        classes=dataset.classes,
        step=state.best_epoch,
        metadata={
            "threshold": results.threshold,
            "modality": setup.config.modality,
            "window": dataset.window,
        },
    )
    return results


def _print_summary(
    run: "TrackedRun", state: "TrainerState", results: "Results", folders: "RunFolders"
) -> None:
    from rich.console import Console
    from rich.table import Table

    from src.tracking.store import how_to_look

    table = Table("split", "AUC", "accuracy", "sensitivity", "specificity", "loss")
    for name, scored in results.splits.items():
        scores = scored.scores
        numbers = (scores.auc, scores.acc, scores.sensitivity, scores.specificity, scores.loss)
        table.add_row(name, *(f"{number:.4f}" for number in numbers))
    Console().print(table)
    print(
        f"best val AUC {state.best_val_auc:.4f} (epoch {state.best_epoch}), threshold {results.threshold:.4f}"
    )
    print(f"run          {run.run_id}")
    print(f"files        {folders.results} and {folders.logs}")
    print(f"look at it   {how_to_look(run.info.experiment_id)}")


if __name__ == "__main__":
    sys.exit(main())
