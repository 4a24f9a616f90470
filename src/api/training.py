"""Train from Python."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..experiment.prepare import TrainRequest, prepare
from ..tracking.stored_run import read_run
from ..training.run_folder import RunFolders
from ..utils.config import Config
from ..utils.config_yaml import flatten, merge_dotted
from ..utils.distributed import SINGLE_PROCESS
from .call import api_call


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        run_id: Its id in MLflow.
        name: Name of its folders.
        status: ``FINISHED``.
        metrics: The last value of each metric, such as ``best_val_auc``.
        config: Its settings, with ``auto`` resolved.
        outputs: Folder of predictions, plots and checkpoints.
        best_checkpoint: Weights of the best epoch.
        latest_checkpoint: State of the last epoch, which a resumed run continues.
        history: CSV file with one line per epoch.
    """

    run_id: str
    name: str
    status: str
    metrics: Mapping[str, float]
    config: Config
    outputs: Path
    best_checkpoint: Path
    latest_checkpoint: Path
    history: Path


def train(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    *,
    model: str | None = None,
    modality: str | None = None,
    data: str | Path | None = None,
    epochs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: str | None = None,
    parent: str | None = None,
    rehash: bool = False,
    verbose: bool = False,
) -> Run:
    """Train a model as one MLflow run, like ``mlproject train``.

    Args:
        config: Settings: a YAML file, a `Config`, or a mapping of sections or dotted keys; None for the
            defaults.
        model: Name of the network, such as ``resnet18``.
        modality: Which images, such as ``A``; ``A+P`` stacks both.
        data: ``demo``, a folder, a ``manifest.csv``, or a MedMNIST ``.npz``.
        epochs: Passes over the training split.
        settings: Further settings by dotted key; they take precedence over all others.
        resume: Id of a run to continue; ``auto`` for the unfinished run with the same settings and data.
        parent: Id of the run to nest this one under; by default it is nested under none.
        rehash: Read every image again instead of trusting the cache.
        verbose: Print what the command prints.

    Raises:
        UserError: Settings, data or the run to resume are refused; no run was started.
        MlprojectError: The training failed; the run is FAILED.
        KeyboardInterrupt: Ctrl-C was pressed; the run is KILLED, and ``resume`` continues it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("train() trains in one process; start several with torchrun -m mlproject.train")
    path = str(config) if isinstance(config, str | Path) else None
    given = config.to_dict() if isinstance(config, Config) else config
    named: dict[str, Any] = {
        "model.name": model,
        "data.modalities": None if modality is None else modality.split("+"),
        "data.root_dir": None if data is None else str(data),
        "training.epochs": epochs,
    }
    with api_call(verbose=verbose), ExitStack() as locks:
        changes = flatten(merge_dotted({}, given)) if isinstance(given, Mapping) else {}
        changes |= {key: value for key, value in named.items() if value is not None} | dict(settings or {})
        changes = {key: _plain(value) for key, value in changes.items()}
        training = prepare(TrainRequest(path, changes, resume, parent, rehash), SINGLE_PROCESS, locks)
        assert training is not None  # not a dry run
        run_id = training.run()
        assert run_id is not None  # the main rank
        return _run(run_id, training.setup.config)


def _plain(value: object) -> object:
    """Return a number of NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _run(run_id: str, config: Config) -> Run:
    stored = read_run(run_id)
    folders = RunFolders(config.output_dir.absolute(), stored.folder_name)
    best, latest = (folders.checkpoints / name for name in ("best_model.pth", "latest.pth"))
    return Run(
        run_id,
        folders.name,
        stored.status,
        stored.metrics,
        config,
        folders.results,
        best,
        latest,
        folders.history,
    )
