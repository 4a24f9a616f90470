"""Apply a trained model from Python."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pandas import DataFrame

from ..errors import ConfigError, DataError
from ..inference.inputs import Given, GivenImages, read_given
from ..inference.load_model import TrainedModel, describe, load_trained
from ..inference.model_reference import ModelReference
from ..inference.predict import features, predictions, with_features
from ..tracking.names import CHAMPION
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.memory import keep_freed_memory
from ..utils.output import say
from ..utils.runtime import determinism, fit_threads
from .call import api_call
from .training import Run

OnBadImage = Literal["error", "skip"]


class Classifier:
    """A trained model, applied as ``mlproject predict`` and ``mlproject extract`` do.

    Attributes:
        name: Name for messages, such as ``resnet18_A version 2``.
        classes: Class names in the order of the probabilities; of two, the last is the positive one.
        modality: Tag of the images, such as ``A``, or ``A+P`` for several.
        threshold: Probability of the positive class from which it is decided.
        config: The settings of its training.
        run_id: The run that trained it, None if it was loaded from a checkpoint.
        version: Its registered version, None if it was not loaded from the registry.
    """

    def __init__(self, trained: TrainedModel) -> None:
        """Wrap a loaded model; see `load`."""
        self._trained = trained
        self.name: str = trained.name
        self.classes: tuple[str, ...] = trained.classes
        self.modality: str = trained.config.modality
        self.threshold: float = trained.threshold
        self.config: Config = trained.config
        self.run_id: str | None = None if trained.run is None else trained.run.run_id
        self.version: int | None = None if trained.version is None else trained.version.number

    def __repr__(self) -> str:
        return f"<Classifier {describe(self._trained)}>"

    def predict(
        self, images: Given, *, on_bad_image: OnBadImage = "error", verbose: bool = False
    ) -> DataFrame:
        """Return probabilities and decisions, one row per image.

        Args:
            images: A path as of ``mlproject predict --input`` (an image, a folder, a ``manifest.csv``, an
                ``.npz`` or ``demo``); a list of paths of images; a DataFrame with a column ``path`` and
                perhaps ``label``, ``patient_id``, ``image_id`` and ``modality``; or pixels, uint8 ``(N, C, H,
                W)``. Relative paths start at the working folder. Pixels must be windowed already (0 black,
                255 white), since they have no units; they are padded or stretched to a square and resized
                like the pixels of a PNG file. One or three channels per modality, in the model's order, are
                converted to gray or RGB as the model needs.
            on_bad_image: ``error``, or ``skip`` images that cannot be read, with a warning for each.
            verbose: Show a progress bar in a terminal.

        Returns:
            The table of ``mlproject predict``: ``image, sample, patient, label``, ``p_{class}`` per class,
            and ``decision``. Rows are in the order of a list, a DataFrame (with its index) or an array, and
            of the names in a folder.

        Raises:
            DataError: The images are missing, not of a supported kind, or cannot be read.
        """
        with self._reading(images, on_bad_image, verbose=verbose) as given:
            return given.in_given_order(predictions(self._trained, given.inputs))

    def features(
        self,
        images: Given,
        *,
        layer: str | None = None,
        on_bad_image: OnBadImage = "error",
        verbose: bool = False,
    ) -> DataFrame:
        """Return the output of a layer, one row per image, as ``mlproject extract`` does.

        Args:
            images: As in `predict`.
            layer: Name of the layer; None for the input of the last one.
            on_bad_image: As in `predict`.
            verbose: As in `predict`.

        Returns:
            ``image, sample, patient, label``, and the features ``f0, f1, ...`` in float32;
            ``table.filter(regex="^f[0-9]+$").to_numpy()`` is the array (N, D).

        Raises:
            DataError: The images are missing, not of a supported kind, or cannot be read.
            ModelError: There is no such layer.
        """
        with self._reading(images, on_bad_image, verbose=verbose) as given:
            table, found = features(self._trained, given.inputs, layer)
            return given.in_given_order(with_features(table, found))

    @contextmanager
    def _reading(self, images: Given, on_bad_image: OnBadImage, *, verbose: bool) -> Iterator[GivenImages]:
        if on_bad_image not in ("error", "skip"):
            raise ConfigError(f"on_bad_image: expected 'error' or 'skip', got {on_bad_image!r}")
        trained = self._trained
        with api_call(verbose=verbose), determinism(trained.config.training.deterministic):
            fit_threads()
            keep_freed_memory()
            given = read_given(images, trained)
            bad = given.inputs.bad
            if bad and on_bad_image == "error":
                raise DataError(
                    f"images that cannot be read: {len(bad)}; the first: {bad[0]}; "
                    "on_bad_image='skip' leaves them out"
                )
            for note in (
                *bad,
                *given.inputs.notes,
                *trained.notes(given.inputs.images, given.inputs.corrected),
            ):
                warn(note)
            yield given


_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9]\d*))")
_RUN = re.compile(r"(?:runs:/)?(?P<id>[0-9a-f]{32})(?:/model)?")


def load(model: str | Path | Run, *, device: str = "auto", verbose: bool = False) -> Classifier:
    """Load a trained model; no code stored with it is executed.

    Args:
        model: ``models:/resnet18_A@champion`` (or ``@previous``, or a version: ``models:/resnet18_A/2``);
            ``runs:/RUN_ID``, a run id, or a `Run`; or the path of a ``best_model.pth``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        verbose: Print a line about the model.

    Raises:
        UserError: There is no such model, run, file or device.
        ClaimError: The model is damaged.
        TrackingError: The store failed.
    """
    reference = _reference(model)
    with api_call(verbose=verbose), tempfile.TemporaryDirectory(prefix="mlproject-") as folder:
        trained = load_trained(reference, Path(folder), device)
        say(describe(trained))
        return Classifier(trained)


def _reference(model: str | Path | Run) -> ModelReference:
    if isinstance(model, Run):
        return ModelReference(run_id=model.run_id)
    if isinstance(model, str) and (found := _REGISTERED.fullmatch(model)):
        version = None if found["version"] is None else int(found["version"])
        return ModelReference(found["name"], version, alias=found["alias"] or CHAMPION)
    if isinstance(model, str) and (found := _RUN.fullmatch(model)):
        return ModelReference(run_id=found["id"])
    if Path(model).suffix != ".pth" and not Path(model).is_file():
        raise ConfigError(
            f"{model}: expected models:/NAME@champion, models:/NAME/VERSION, runs:/RUN_ID, a run id, or the "
            "path of a best_model.pth"
        )
    return ModelReference(checkpoint=Path(model).expanduser())
