"""Evidence for a run: its AUC with interval, a paired test, verification, and correction for the choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ClaimError, DataError, UserError
from ..evaluation.auc import Difference, auc, compare, corrected_auc
from ..evaluation.intervals import interval
from ..evaluation.predictions import Predictions, read_predictions
from ..tracking.logged_model import load_model
from ..tracking.names import CONFIG_FILE, PREDICTIONS
from ..tracking.stored_run import StoredRun
from ..utils.cli import warn
from ..utils.config import Config
from .history import Event
from .select import rank
from .state import Contender

if TYPE_CHECKING:
    from torch import nn

_SAME_NUMBER = 1e-6  # predictions are stored in full precision
_SAME_AUC = 1e-3
_SAME_PROBABILITY = 0.01  # devices and TF32 differ by less, separately trained models by more
_MOST = 100  # the predictions of so many of the best runs are read, so that 10,000 runs take no longer


@dataclass(frozen=True)
class Correction:
    """The val AUC of a run that was chosen as the best of several, corrected for that choice.

    Attributes:
        auc: The corrected val AUC.
        among: Number of runs that it was the best of.
        used: Number of those that the correction uses: the best 100 with stored predictions.
    """

    auc: float
    among: int
    used: int

    def __str__(self) -> str:
        """Return the correction for a table."""
        used = "" if self.used == self.among else f" ({self.used} used)"
        return f"{self.auc:.4f} corrected, best of {self.among}{used}"


def with_evidence(contender: Contender, run: StoredRun, folder: Path) -> Contender:
    """Return a contender with what its run has stored: predictions, interval, and whether it is leaky."""
    contender = replace(contender, is_leaky=run.is_leaky)
    predictions = stored_predictions(run, "val", folder)
    if predictions is None or not _matches_auc(predictions, contender.val_auc):
        return contender  # predictions of another model allow neither an interval nor a test
    found = interval(predictions.labels, predictions.probabilities, predictions.patients)
    return replace(contender, interval=found, predictions=predictions)


def difference(candidate: Contender, champion: Contender) -> Difference | None:
    """Test whether the AUCs differ; return None unless both have predictions on the same samples."""
    one, two = candidate.predictions, champion.predictions
    if one is None or two is None or not _have_same_samples(one, two):
        return None
    return compare(one.labels, one.probabilities, two.probabilities, one.patients)


def _matches_auc(predictions: Predictions, val_auc: float) -> bool:
    """Return whether stored predictions have the val AUC that their run reports."""
    return abs(auc(predictions.labels, predictions.probabilities) - val_auc) <= _SAME_NUMBER


def _have_same_samples(one: Predictions, two: Predictions) -> bool:
    """Return whether two models have predicted the same samples in the same order."""
    if (one.samples, one.patients, one.classes) != (two.samples, two.patients, two.classes):
        return False
    return np.array_equal(one.labels, two.labels)


def read_config(run: StoredRun, folder: Path) -> Config:
    """Read the run's resolved settings.

    Raises:
        ClaimError: They are missing.
    """
    path = run.fetch(CONFIG_FILE, folder)
    if path is None:
        raise ClaimError(f"run {run.run_id}: its artifact {CONFIG_FILE} is gone")
    return Config.from_file(path)


def verify(run: StoredRun, folder: Path) -> str:
    """Verify a run's val AUC by its model on its data, or else by its stored predictions; return how.

    Raises:
        ClaimError: The model cannot be loaded safely, gives another AUC than the run reports or other
            probabilities than the stored ones, or neither data nor predictions are available.
        TrackingError: The store failed.
    """
    claim, stored = run.val_auc, stored_predictions(run, "val", folder)
    if stored is not None:
        _expect(run, "its stored predictions", auc(stored.labels, stored.probabilities), claim, _SAME_NUMBER)
    if run.model_source is None:
        raise ClaimError(f"run {run.run_id} has no logged model")
    model = load_model(run.model_source, folder / run.run_id / "model").module
    try:
        given = _predict(run, model, folder)
    except (UserError, OSError) as error:
        # Only a warning: it may name images, while the verdict is stored in the registry.
        warn(f"run {run.run_id}: its validation data is not available: {error}")
        if stored is None:
            raise ClaimError(f"run {run.run_id}: its data and its predictions are not available") from None
        return "stored predictions; the data is not available"
    # Equal probabilities are a stronger check than an equal AUC, which near ties can change.
    if stored is None or _distance(stored, given) > _SAME_PROBABILITY:
        _expect(run, "its logged model", auc(given.labels, given.probabilities), claim, _SAME_AUC)
        if stored is not None:
            raise ClaimError(
                f"run {run.run_id}: its logged model's probabilities on val are not the stored ones; "
                "one of them was changed after training"
            )
    return "logged model on the validation data"


def stored_predictions(run: StoredRun, split: str, folder: Path) -> Predictions | None:
    """Return a run's predictions on a split, None if they are missing or damaged."""
    path = run.fetch(f"{PREDICTIONS}/{split}.csv", folder)
    try:
        return None if path is None else read_predictions(path)
    except DataError:
        return None


def _expect(run: StoredRun, what: str, found: float, claim: float, tolerance: float) -> None:
    if not abs(found - claim) <= tolerance:
        raise ClaimError(f"run {run.run_id} claims a val AUC of {claim:.6f} and {what} give {found:.6f}")


def _distance(stored: Predictions, given: Predictions) -> float:
    if stored.samples != given.samples or stored.probabilities.shape != given.probabilities.shape:
        return math.inf
    return float(np.abs(stored.probabilities - given.probabilities).max())


def _predict(run: StoredRun, model: "nn.Module", folder: Path) -> Predictions:
    """Return the model's predictions on the validation split of the run's own data."""
    import torch

    from ..data.batches import load_batches, sequential_batches
    from ..data.dataset import load_dataset
    from ..utils.console import track

    config = read_config(run, folder)
    # Use an existing cache, but create none.
    cache = config.cache_dir if config.cache_dir.is_dir() else folder / "cache"
    dataset = load_dataset(config.data, cache)
    if dataset.fingerprint != run.data_fingerprint:
        raise DataError(f"{config.data.root_dir} holds other data by now")
    val = dataset.splits["val"]
    batches = list(sequential_batches(np.arange(len(val)), config.training.batch_size))
    try:
        with torch.inference_mode():
            images = load_batches(dataset.images("val"), batches, torch.device("cpu"))
            parts = [model(pixels) for pixels in track(images, "verify", len(batches))]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ClaimError(
            f"run {run.run_id}: its logged model fails on its validation data: {reason}"
        ) from None
    probabilities = torch.cat(parts).double().numpy()
    return Predictions(val.hashes, val.patients, val.labels, probabilities, dataset.classes)


def correction_of(event: Event | None) -> Correction | None:
    """Return the correction that a promotion has recorded; None if it has not, as in earlier versions."""
    if event is None or event.val_auc_corrected is None:
        return None
    return Correction(event.val_auc_corrected, event.chosen_among or 1, event.corrected_with or 1)


def correct(best: StoredRun, candidates: Sequence[StoredRun], folder: Path) -> Correction | None:
    """Correct a run's val AUC for being the best of the runs that competed.

    Args:
        best: The best run.
        candidates: All runs that it was chosen among, itself included.
        folder: Where to download files to if the store is not a local folder.

    Returns:
        The correction; None if there was a choice and the predictions of the run or of all others are
        missing, or are too few to resample.
    """
    if len(candidates) == 1:
        return Correction(best.val_auc, 1, 1)
    others = [run for run in rank(candidates) if run.run_id != best.run_id]
    # By age: of equal runs the earlier one wins, and no order by AUC may decide within a sample.
    runs = sorted([best, *others[: _MOST - 1]], key=lambda run: (run.start_time, run.run_id))
    tables = _matching_predictions(runs, folder)
    own = tables.get(best.run_id)
    if own is None:
        return None
    same = [table for table in tables.values() if _have_same_samples(own, table)]
    if len(same) == 1:
        return None
    value = corrected_auc(own.labels, [table.probabilities for table in same], own.patients)
    return None if math.isnan(value) else Correction(value, len(candidates), len(same))


def _matching_predictions(runs: Sequence[StoredRun], folder: Path) -> dict[str, Predictions]:
    """Return by run id the validation predictions that exist and match the run's val AUC."""
    tables: dict[str, Predictions] = {}
    for run in runs:
        try:
            found = stored_predictions(run, "val", folder)
        except ClaimError:
            continue
        if found is not None and _matches_auc(found, run.val_auc):
            tables[run.run_id] = found
    return tables
