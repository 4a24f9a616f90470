"""The labelled images that a model is judged on: one side of a split, or all of a folder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.dataset import Dataset, load_dataset
from ..data.image_array import ImageSource
from ..data.inputs import Inputs, load_inputs
from ..data.samples import UNKNOWN
from ..errors import ConfigError, DataError
from ..utils.config import DataConfig
from ..utils.io import sha256
from .trained import TrainedModel

ALL = "all"
SIDES = ("train", "val", "test", ALL)


@dataclass(frozen=True, eq=False)
class Cases:
    """Labelled images.

    Attributes:
        split: ``train``, ``val``, ``test`` or ``all``.
        samples: Hash of each sample's pixels, N.
        patients: Index of each sample's patient, None where unknown, N.
        labels: Class indices, (N,).
        images: The images, to be read in batches.
        data_fingerprint: Names images, labels and patients.
        split_fingerprint: Names which images are on which side.
        notes: Sentences to show.
        corrected: Kinds and numbers of files that earlier versions read wrongly, "" without.
        bad: One message per image that could not be read.
    """

    split: str
    samples: tuple[str, ...]
    patients: tuple[int | None, ...]
    labels: NDArray[np.int64]
    images: ImageSource
    data_fingerprint: str
    split_fingerprint: str
    notes: tuple[str, ...]
    corrected: str
    bad: tuple[str, ...] = ()


def load_cases(trained: TrainedModel, root: str, split: str) -> Cases:
    """Finds the images to judge a model on.

    Args:
        trained: The model; its run's settings say how images are found, split and decoded.
        root: What to read instead of the run's own data; empty for that.
        split: A side of the split that training would make of it, or ``all`` of its images.

    Raises:
        ConfigError: There is no such split.
        DataError: The data cannot be used, or is of other classes.
    """
    if split not in SIDES:
        raise ConfigError(f"--split {split}: one of {', '.join(SIDES)} belongs here")
    config = trained.config.data
    if root:
        config = DataConfig.model_validate(config.model_dump() | {"root_dir": root})
    cache = trained.config.cache_dir
    if split == ALL:
        return _all(trained, load_inputs(config.root_dir, config, trained.classes, cache))
    return _side(trained, load_dataset(config, cache), split)


def _side(trained: TrainedModel, dataset: Dataset, split: str) -> Cases:
    if dataset.classes != trained.classes:
        raise DataError(
            f"{dataset.root}: has the classes {', '.join(dataset.classes)}, and {trained.name} knows "
            f"{', '.join(trained.classes)}; they must be the same, in this order"
        )
    if split not in dataset.splits:
        raise DataError(f"{dataset.root}: has no {split}; there are {', '.join(dataset.splits)}")
    side = dataset.splits[split]
    return Cases(
        split,
        side.hashes,
        side.patients,
        side.labels,
        dataset.images(split),
        dataset.fingerprint,
        dataset.split_fingerprint,
        dataset.warnings,
        dataset.corrected,
    )


def _all(trained: TrainedModel, inputs: Inputs) -> Cases:
    labels = np.array([record.label for record in inputs.records], dtype=np.int64)
    unknown = int((labels == UNKNOWN).sum())
    if unknown:
        raise DataError(
            f"the class of {unknown} of {len(labels)} images is not told, so they cannot be judged; put each "
            f"into a folder named as its class ({', '.join(trained.classes)}), or name it in a manifest"
        )
    told = [record.patient for record in inputs.records]
    numbers = {name: index for index, name in enumerate(sorted({name for name in told if name}))}
    patients = tuple(numbers[name] if name else None for name in told)
    samples = tuple(record.sample for record in inputs.records)
    lines = sorted(
        f"{trained.classes[label]}\t{patient}\t{sample}"
        for label, patient, sample in zip(labels, patients, samples, strict=True)
    )
    return Cases(
        ALL,
        samples,
        patients,
        labels,
        inputs.images,
        sha256("\n".join(lines).encode()),
        sha256("\n".join(sorted(samples)).encode()),
        inputs.notes,
        inputs.corrected,
        inputs.bad,
    )
