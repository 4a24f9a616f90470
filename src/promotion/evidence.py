"""What speaks for a run: its AUC with an interval, a paired test, and whether its claim holds."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ClaimError, DataError, UserError
from ..evaluation.auc import Difference, auc, compare
from ..evaluation.intervals import Interval, interval
from ..evaluation.predictions import Predictions, read_predictions
from ..tracking.finished_run import FinishedRun
from ..tracking.names import BEST_VAL_AUC, CONFIG, DATA_FINGERPRINT
from ..utils.cli import warn
from ..utils.config import Config

if TYPE_CHECKING:
    from torch import nn

_SAME_NUMBER = 1e-6  # predictions are stored in full precision
_SAME_AUC = 1e-3
_SAME_PROBABILITY = 0.01  # devices and TF32 differ by less, models that were trained apart by more


@dataclass(frozen=True)
class Standing:
    """One side of a comparison.

    Attributes:
        val_auc: The val AUC that it claims.
        run_id: Its run, None for a hand-made YAML.
        version: Its registered version, None where it has none yet.
        interval: Of the AUC, None where the predictions are gone.
        predictions: On the validation split, None where they are gone.
        is_leaky: Whether it was allowed a leak between splits.
    """

    val_auc: float
    run_id: str | None
    version: int | None
    interval: Interval | None
    predictions: Predictions | None
    is_leaky: bool = False

    @property
    def low(self) -> float | None:
        """Lower end of the interval, None where there is none."""
        return None if self.interval is None or math.isnan(self.interval.low) else self.interval.low

    @property
    def high(self) -> float | None:
        """Upper end of the interval, None where there is none."""
        return None if self.interval is None or math.isnan(self.interval.high) else self.interval.high


def stand(run: FinishedRun, val_auc: float, version: int | None, folder: Path) -> Standing:
    """Reads a run's stored predictions and makes its interval."""
    predictions = stored_predictions(run, "val", folder)
    found = None
    if predictions is not None:
        found = interval(predictions.labels, predictions.probabilities, predictions.patients)
        if not gives(predictions, val_auc):
            # Some other model's: neither an interval nor a test can be had from them.
            found = predictions = None
    return Standing(val_auc, run.run_id, version, found, predictions, run.is_leaky)


def difference(challenger: Standing, champion: Standing) -> Difference | None:
    """Tests whether the challenger's AUC differs; None unless both saw the same samples in the same order."""
    one, two = challenger.predictions, champion.predictions
    if one is None or two is None:
        return None
    if not saw_the_same(one, two):
        return None
    return compare(one.labels, one.probabilities, two.probabilities, one.patients)


def gives(predictions: Predictions, val_auc: float) -> bool:
    """Say whether stored predictions have the val AUC that their run claims."""
    return abs(auc(predictions.labels, predictions.probabilities) - val_auc) <= _SAME_NUMBER


def saw_the_same(one: Predictions, two: Predictions) -> bool:
    """Say whether two models have predicted the same samples in the same order."""
    if (one.samples, one.patients, one.classes) != (two.samples, two.patients, two.classes):
        return False
    return np.array_equal(one.labels, two.labels)


def read_config(run: FinishedRun, folder: Path) -> Config:
    """The run's resolved settings.

    Raises:
        ClaimError: They are gone.
    """
    path = run.fetch(CONFIG, folder)
    if path is None:
        raise ClaimError(f"run {run.run_id}: its artifact {CONFIG} is gone")
    return Config.from_file(path)


def verify(run: FinishedRun, folder: Path) -> str:
    """Checks a run's claim and returns how: by its model on its data, or else by its stored predictions.

    Raises:
        ClaimError: The model is not loaded without executing anything, gives another AUC than the run
            claims or other probabilities than the stored ones, or nothing is there to check by.
        TrackingError: The store failed.
    """
    from ..tracking.logged_model import load_model

    claim, stored = run.metrics[BEST_VAL_AUC], stored_predictions(run, "val", folder)
    if stored is not None:
        _expect(run, "its stored predictions", auc(stored.labels, stored.probabilities), claim, _SAME_NUMBER)
    if run.model_source is None:
        raise ClaimError(f"run {run.run_id} has no logged model")
    model = load_model(run.model_source, folder / run.run_id / "model").module
    try:
        given = _predict(run, model, folder)
    except (UserError, OSError) as error:
        # Told to the person at hand only: it may name images, and the verdict goes into the registry.
        warn(f"run {run.run_id}: its validation data is not at hand: {error}")
        if stored is None:
            raise ClaimError(f"run {run.run_id}: neither its data nor its predictions are at hand") from None
        return "stored predictions; the data is not at hand"
    # Equal probabilities say more than an equal AUC, which near ties can move.
    if stored is None or _distance(stored, given) > _SAME_PROBABILITY:
        _expect(run, "its logged model", auc(given.labels, given.probabilities), claim, _SAME_AUC)
    if stored is not None and _distance(stored, given) > _SAME_PROBABILITY:
        raise ClaimError(
            f"run {run.run_id}: its logged model's probabilities on val are not the stored ones; "
            "one of them was changed after training"
        )
    return "logged model on the validation data"


def stored_predictions(run: FinishedRun, split: str, folder: Path) -> Predictions | None:
    """A run's predictions on a split; None where they are gone or damaged."""
    path = run.fetch(f"predictions/{split}.csv", folder)
    try:
        return None if path is None else read_predictions(path)
    except DataError:
        return None


def _expect(run: FinishedRun, what: str, found: float, claim: float, tolerance: float) -> None:
    if not abs(found - claim) <= tolerance:
        raise ClaimError(f"run {run.run_id} claims a val AUC of {claim:.6f} and {what} give {found:.6f}")


def _distance(stored: Predictions, given: Predictions) -> float:
    if stored.samples != given.samples or stored.probabilities.shape != given.probabilities.shape:
        return math.inf
    return float(np.abs(stored.probabilities - given.probabilities).max())


def _predict(run: FinishedRun, model: "nn.Module", folder: Path) -> Predictions:
    """The model's predictions on the validation split of the run's own data.

    Raises:
        UserError: The data is not at hand, or is other data by now.
    """
    import torch

    from ..data.dataset import load_dataset
    from ..data.loading import load_batches, sequential_batches
    from ..utils.progress import track

    config = read_config(run, folder)
    # A cache that is there is used; a promotion makes none.
    cache = config.cache_dir if config.cache_dir.is_dir() else folder / "cache"
    dataset = load_dataset(config.data, cache)
    if dataset.fingerprint != run.tags[DATA_FINGERPRINT]:
        raise DataError(f"{config.data.root_dir} holds other data by now")
    val = dataset.splits["val"]
    batches = list(sequential_batches(np.arange(len(val)), config.training.batch_size))
    try:
        with torch.inference_mode():
            images = load_batches(dataset.images("val"), batches, torch.device("cpu"))
            parts = [model(pixels) for pixels in track(images, "verify", len(batches))]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ClaimError(f"run {run.run_id}: its logged model does not take its data: {reason}") from None
    probabilities = torch.cat(parts).double().numpy()
    return Predictions(val.hashes, val.patients, val.labels, probabilities, dataset.classes)
