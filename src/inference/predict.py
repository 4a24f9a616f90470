"""Compute tables of probabilities, decisions and features of images by a trained model."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data.listing import UNKNOWN
from ..data.sources import Inputs, load_inputs
from ..errors import ConfigError, MlprojectError
from ..evaluation.metrics import decide, softmax
from ..models.forward import extract_features, predict_logits
from ..tracking.project_run import mark_project_run
from ..utils.cli import warn
from ..utils.io import atomic_file, atomic_write_text
from ..utils.runtime import determinism
from ..utils.tables import escape_formula
from .load_model import TrainedModel, describe, load_trained
from .model_reference import ModelReference

if TYPE_CHECKING:
    from pandas import DataFrame


@contextmanager
def trained_model(reference: ModelReference, device: str, role: str) -> Iterator[tuple[TrainedModel, Path]]:
    """Load a model, print a line about it, and provide a temporary folder.

    Args:
        reference: The model to load.
        device: Device to compute on.
        role: Role to record on the run that ``mlflow run`` created for this process, if any.
    """
    mark_project_run(role)
    with tempfile.TemporaryDirectory(prefix="mlproject-") as folder:
        trained = load_trained(reference, Path(folder), device)
        print(describe(trained))
        with determinism(trained.config.training.deterministic):
            yield trained, Path(folder)


def read_inputs(args: argparse.Namespace, trained: TrainedModel) -> Inputs:
    """Return the images that ``--input`` names.

    Raises:
        ConfigError: ``--input`` is missing.
        DataError: No usable images are found.
    """
    if not args.input:
        raise ConfigError("--input is missing: expected an image, a folder, a manifest.csv or an .npz")
    config = trained.config
    inputs = load_inputs(args.input, config.data, trained.classes, config.cache_dir)
    for note in (*inputs.notes, *trained.notes(inputs.corrected)):
        warn(note)
    return inputs


def refuse_bad(bad: Sequence[str], output: Path) -> None:
    """Name the images that could not be read, after all else was written; raise an error if any."""
    for message in bad:
        warn(message)
    if bad:
        raise MlprojectError(f"images that cannot be read: {len(bad)}, named above and left out of {output}")


def predictions(trained: TrainedModel, inputs: Inputs) -> "DataFrame":
    """Return one row per image: ``image, sample, patient, label``, ``p_{class}`` per class, ``decision``.

    ``image`` is the path below the input, ``sample`` the hash of the pixels; ``patient`` and ``label``
    are empty where unknown. The decision is taken at the threshold that the model's run recorded.
    """
    network = trained.network
    images = trained.batches(inputs.images, "images")
    probabilities = softmax(predict_logits(network.model, network.spec, images, device=network.device))
    table = _described(trained, inputs)
    for index, name in enumerate(trained.classes):
        table[f"p_{name}"] = probabilities[:, index]
    table["decision"] = [trained.classes[i] for i in decide(probabilities, trained.threshold)]
    return table


def features(
    trained: TrainedModel, inputs: Inputs, layer: str | None
) -> tuple["DataFrame", NDArray[np.float32]]:
    """Return a table that identifies each image, and the features (N, D) in the same order.

    Raises:
        ModelError: The layer is not found.
    """
    network, images = trained.network, trained.batches(inputs.images, "images")
    found = extract_features(network.model, network.spec, images, device=network.device, layer=layer)
    return _described(trained, inputs), found.numpy()


def _described(trained: TrainedModel, inputs: Inputs) -> "DataFrame":
    from pandas import DataFrame

    records = inputs.records
    return DataFrame(
        {
            "image": records.keys.tolist(),
            "sample": records.samples,
            "patient": [patient or None for patient in records.patients],
            "label": [None if label == UNKNOWN else trained.classes[label] for label in records.labels],
        }
    )


def write_table(table: "DataFrame", path: Path) -> None:
    """Write a ``.csv`` (numbers in full precision) or a ``.parquet`` atomically.

    In a ``.csv``, an apostrophe is put before text that a spreadsheet would run as a formula.
    """
    if path.suffix.lower() == ".csv":
        words = table.select_dtypes(exclude="number").columns
        safe = {name: table[name].map(escape_formula, na_action="ignore") for name in words}
        atomic_write_text(path, table.assign(**safe).to_csv(index=False))
        return
    data = BytesIO()
    table.to_parquet(data, index=False)
    with atomic_file(path) as file:
        file.write(data.getbuffer())


def write_features(table: "DataFrame", found: NDArray[np.float32], path: Path) -> None:
    """Write features as columns ``f0, f1, ...`` of the table, or as ``.npy`` with the table as ``.csv``."""
    import pandas

    if path.suffix.lower() != ".npy":
        columns = pandas.DataFrame(found, columns=[f"f{i}" for i in range(found.shape[1])])
        write_table(pandas.concat([table, columns], axis=1), path)
        return
    with atomic_file(path) as file:
        np.save(file, found)
    write_table(table, path.with_suffix(".csv"))
