"""What the commands share that put a trained model to images."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..data.inputs import Inputs, load_inputs
from ..errors import ConfigError, MlprojectError
from ..tracking.project_run import mark_project_run
from ..utils.cli import warn
from ..utils.runtime import determinism
from .reference import Reference
from .trained import TrainedModel, describe, load_trained


@contextmanager
def trained_model(reference: Reference, device: str, role: str) -> Iterator[tuple[TrainedModel, Path]]:
    """A model, told to the person at hand, and a folder for files that are needed for a moment.

    Args:
        reference: Which one.
        device: Where it is to compute.
        role: What the run is that ``mlflow run`` has made for this process, where it has.
    """
    mark_project_run(role)
    with tempfile.TemporaryDirectory(prefix="mlproject-") as folder:
        trained = load_trained(reference, Path(folder), device)
        print(describe(trained))
        with determinism(trained.config.training.deterministic):
            yield trained, Path(folder)


def read_inputs(args: argparse.Namespace, trained: TrainedModel) -> Inputs:
    """The images that ``--input`` names.

    Raises:
        ConfigError: It names none.
        DataError: There is nothing usable.
    """
    if not args.input:
        raise ConfigError("--input: an image, a folder, a manifest.csv or an .npz belongs here")
    config = trained.config
    inputs = load_inputs(args.input, config.data, trained.classes, config.cache_dir)
    for note in (*inputs.notes, *trained.notes(inputs.corrected)):
        warn(note)
    return inputs


def refuse_bad(bad: Sequence[str], output: Path) -> None:
    """Names what could not be read, after everything else was written.

    Raises:
        MlprojectError: There is anything.
    """
    for message in bad:
        warn(message)
    if bad:
        raise MlprojectError(f"images that cannot be read: {len(bad)}, named above and left out of {output}")
