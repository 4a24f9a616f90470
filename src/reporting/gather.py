"""What is known of a group: its runs, its champion beside the runner-up, and how it came to be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import ClaimError, ConfigError, TrackingError
from ..promotion.evidence import (
    Contender,
    Correction,
    contender_of,
    correction_of,
    difference,
    read_config,
    stored_predictions,
)
from ..promotion.history import Event, Group, of_group, read_history
from ..promotion.select import pick_fingerprints, rank
from ..promotion.state import event_of
from ..tracking.names import BEST_VAL_AUC
from ..tracking.queries import find_candidates
from ..tracking.registry import read_registered
from ..tracking.stored_run import StoredRun, read_run
from ..training.auc import Difference
from ..training.defaults import resolve_defaults
from ..training.estimates import Estimate, estimate
from ..training.metrics import optimism
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.tables import read_rows

_SHOWN = 30
_HISTORY = "training_history.csv"


@dataclass(frozen=True)
class Row:
    """One run in the table: its id and val AUC, when it started, and the settings that tell runs apart."""

    run_id: str
    val_auc: float
    started: str
    settings: Mapping[str, str]
    is_champion: bool


@dataclass(frozen=True)
class Side:
    """The champion, or the runner-up.

    Attributes:
        run: Its run.
        standing: Its val AUC with interval and predictions.
        scores: Estimates by split, where the predictions are there.
        threshold: Its operating threshold.
        optimism: What to say of the scores on validation, None where there is nothing.
        history: One row per epoch, empty where it is gone.
    """

    run: StoredRun
    standing: Contender
    scores: Mapping[str, Mapping[str, Estimate]]
    threshold: float
    optimism: str | None
    history: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class GroupReport:
    """Everything that the page says of a group."""

    group: Group
    rows: Sequence[Row]
    runs: int
    other_data: int
    champion: Side | None
    runner_up: Side | None
    difference: Difference | None
    correction: Correction | None
    events: Sequence[Event]


def gather(model: str | None, modality: str | None, folder: Path) -> list[GroupReport]:
    """Reads everything about the groups, or about those of a model or a modality.

    Args:
        model: Only groups of this model.
        modality: Only groups of this modality.
        folder: Where to copy files from a store that is no local folder.

    Raises:
        TrackingError: The store cannot be read.
    """
    groups: dict[Group, list[StoredRun]] = {}
    for candidate in find_candidates():
        groups.setdefault(Group(*candidate.group), []).append(candidate)
    entries = read_history()
    return [
        _gather_one(group, groups[group], entries, folder)
        for group in sorted(groups)
        if model in (None, group.model) and modality in (None, group.modality)
    ]


def _gather_one(group: Group, candidates: list[StoredRun], entries: list[Event], folder: Path) -> GroupReport:
    fingerprints = pick_fingerprints(candidates, None)
    comparable = rank([c for c in candidates if c.fingerprints == fingerprints])
    version = read_registered(group.name).champion
    run_id = None if version is None else version.run_id
    others = [c for c in comparable if c.run_id != run_id]
    champion = None if version is None or run_id is None else _side(run_id, version.number, folder)
    runner_up = _side(others[0].run_id, None, folder) if others else None
    both = champion is not None and runner_up is not None
    return GroupReport(
        group,
        [_row(candidate, run_id, folder) for candidate in comparable[:_SHOWN]],
        len(comparable),
        len(candidates) - len(comparable),
        champion,
        runner_up,
        difference(champion.standing, runner_up.standing) if both and champion and runner_up else None,
        None if version is None else correction_of(event_of(version)),
        of_group(entries, group),
    )


def _row(candidate: StoredRun, champion: str | None, folder: Path) -> Row:
    started = datetime.fromtimestamp(candidate.start_time / 1000, UTC)
    return Row(
        candidate.run_id,
        candidate.val_auc,
        f"{started:%Y-%m-%d %H:%M}",
        _settings(candidate.run_id, folder),
        candidate.run_id == champion,
    )


def _settings(run_id: str, folder: Path) -> Mapping[str, str]:
    try:
        config = read_config(read_run(run_id), folder)
    except (ClaimError, ConfigError):  # its file is gone, or of another release
        return {}
    return {name: str(value) for name, value in _telling(config).items()}


def _telling(config: Config) -> Mapping[str, object]:
    training = resolve_defaults(config).training
    return {
        "epochs": training.epochs,
        "batch size": training.batch_size,
        "learning rate": f"{float(training.learning_rate):g}",
        "optimizer": training.optimizer,
        "weights": Path(config.model.weights).name,
        "size": config.data.image_size,
        "seed": training.seed,
    }


def _side(run_id: str, version: int | None, folder: Path) -> Side | None:
    try:
        run = read_run(run_id)
    except TrackingError:  # deleted since
        return None
    try:
        return _read_side(run, version, folder)
    except ClaimError as error:
        warn(f"{error}; the report leaves the run's scores out")
        return None


def _read_side(run: StoredRun, version: int | None, folder: Path) -> Side:
    val_auc = run.metrics.get(BEST_VAL_AUC, math.nan)
    threshold = run.metrics.get("best_threshold", 0.5)
    found = {split: stored_predictions(run, split, folder) for split in ("val", "test")}
    scores = {
        split: estimate(p.labels, p.probabilities, p.patients, threshold)
        for split, p in found.items()
        if p is not None
    }
    standing = contender_of(run, val_auc, version, folder)
    return Side(run, standing, scores, threshold, _optimism(run, folder), _read_history(run, folder))


def _optimism(run: StoredRun, folder: Path) -> str | None:
    try:
        return optimism(read_config(run, folder).evaluation.threshold)
    except (ClaimError, ConfigError):  # its file is gone, or of another release
        return None


def _read_history(run: StoredRun, folder: Path) -> list[dict[str, float]]:
    path = run.fetch(_HISTORY, folder)
    if path is None:
        return []
    try:
        (_, names), *rows = read_rows(path)
        return [dict(zip(names, map(float, cells), strict=True)) for _, cells in rows if cells]
    except ValueError:  # not a table of numbers
        return []
