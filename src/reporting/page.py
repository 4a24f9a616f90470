"""The HTML report: runs, champion and runner-up of each group, in one self-contained file."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import ClaimError, ConfigError, TrackingError
from ..evaluation.auc import Difference
from ..evaluation.intervals import Estimate, estimate
from ..evaluation.metric_names import BEST_EPOCH, BEST_THRESHOLD
from ..evaluation.metrics import optimism
from ..evaluation.plots import learning_curves, readable
from ..evaluation.score_plots import curves
from ..promotion.evidence import (
    Correction,
    correction_of,
    difference,
    read_config,
    stored_predictions,
    with_evidence,
)
from ..promotion.history import Event, Group, read_history
from ..promotion.select import pick_fingerprints, rank
from ..promotion.state import Contender, event_of
from ..tracking.queries import find_candidates
from ..tracking.registry import read_registered
from ..tracking.stored_run import StoredRun, read_run
from ..training.optim import resolve_defaults
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.tables import read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "page.html"
_SHOWN = 30
_HISTORY = "training_history.csv"


@dataclass(frozen=True)
class Row:
    """One run in the table: its id, val AUC, start time, and main settings."""

    run_id: str
    val_auc: float
    started: str
    settings: Mapping[str, str]
    is_champion: bool


@dataclass(frozen=True)
class Side:
    """The champion, or the runner-up.

    Attributes:
        run: The run.
        contender: Its val AUC with interval and predictions.
        scores: Estimates for each split with stored predictions.
        threshold: Its operating threshold.
        optimism: Why its validation scores are optimistic, None if they are not.
        history: One row per epoch, empty if the file is missing.
    """

    run: StoredRun
    contender: Contender
    scores: Mapping[str, Mapping[str, Estimate]]
    threshold: float
    optimism: str | None
    history: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class GroupReport:
    """All facts of a group in the report."""

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
    """Read everything about all groups, or those of a model or a modality.

    Args:
        model: Only groups of this model.
        modality: Only groups of this modality.
        folder: Where to download files to if the store is not a local folder.

    Raises:
        TrackingError: The store cannot be read.
    """
    groups: dict[Group, list[StoredRun]] = {}
    for candidate in find_candidates():
        groups.setdefault(Group(*candidate.group), []).append(candidate)
    events = read_history()
    return [
        _gather_one(group, groups[group], events, folder)
        for group in sorted(groups)
        if model in (None, group.model) and modality in (None, group.modality)
    ]


def _gather_one(group: Group, candidates: list[StoredRun], events: list[Event], folder: Path) -> GroupReport:
    fingerprints = pick_fingerprints(candidates, None)
    comparable = rank([c for c in candidates if c.fingerprints == fingerprints])
    version = read_registered(group.name).champion
    run_id = None if version is None else version.run_id
    others = [c for c in comparable if c.run_id != run_id]
    champion = None if version is None or run_id is None else _side(run_id, version.number, folder)
    runner_up = _side(others[0].run_id, None, folder) if others else None
    return GroupReport(
        group,
        [_row(candidate, run_id, folder) for candidate in comparable[:_SHOWN]],
        len(comparable),
        len(candidates) - len(comparable),
        champion,
        runner_up,
        difference(champion.contender, runner_up.contender) if champion and runner_up else None,
        None if version is None else correction_of(event_of(version)),
        [event for event in events if event.group == group],
    )


def _row(candidate: StoredRun, champion: str | None, folder: Path) -> Row:
    started = datetime.fromtimestamp(candidate.start_time / 1000, UTC)
    config = _config(read_run(candidate.run_id), folder)
    return Row(
        candidate.run_id,
        candidate.val_auc,
        f"{started:%Y-%m-%d %H:%M}",
        {} if config is None else _main_settings(config),
        candidate.run_id == champion,
    )


def _config(run: StoredRun, folder: Path) -> Config | None:
    """Return a run's settings, None if its file is missing or from another release."""
    try:
        return read_config(run, folder)
    except (ClaimError, ConfigError):
        return None


def _main_settings(config: Config) -> dict[str, str]:
    training = resolve_defaults(config).training
    values = {
        "epochs": training.epochs,
        "batch size": training.batch_size,
        "learning rate": f"{float(training.learning_rate):g}",
        "optimizer": training.optimizer,
        "weights": Path(config.model.weights).name,
        "size": config.data.image_size,
        "seed": training.seed,
    }
    return {name: str(value) for name, value in values.items()}


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
    threshold = run.metrics.get(BEST_THRESHOLD, 0.5)
    found = {split: stored_predictions(run, split, folder) for split in ("val", "test")}
    scores = {
        split: estimate(p.labels, p.probabilities, p.patients, threshold)
        for split, p in found.items()
        if p is not None
    }
    contender = with_evidence(Contender(run.val_auc, run.run_id, version), run, folder)
    config = _config(run, folder)
    caveat = None if config is None else optimism(config.evaluation.threshold)
    return Side(run, contender, scores, threshold, caveat, _read_history(run, folder))


def _read_history(run: StoredRun, folder: Path) -> list[dict[str, float]]:
    path = run.fetch(_HISTORY, folder)
    if path is None:
        return []
    try:
        (_, names), *rows = read_rows(path)
        return [dict(zip(names, map(float, cells), strict=True)) for _, cells in rows if cells]
    except ValueError:  # not a table of numbers
        return []


def render(reports: Sequence[GroupReport], store: str) -> str:
    """Return the page as HTML.

    Args:
        reports: The groups.
        store: The name of the store.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "estimate": _estimate}
    plots = {report.group.name: _plots(report) for report in reports}
    return environment.get_template(_TEMPLATE).render(
        reports=reports, plots=plots, store=store, made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _estimate(found: Estimate) -> str:
    if math.isnan(found.low):
        return f"{_number(found.value)} ({found.note})"
    return f"{_number(found.value)} ({_number(found.low)} to {_number(found.high)})"


def _plots(report: GroupReport) -> dict[str, str]:
    """Return the plots with available data as ``data:`` URIs by title."""
    champion, found = report.champion, dict[str, str]()
    if champion is None:
        return found
    if champion.history:
        best = int(champion.run.metrics.get(BEST_EPOCH, 0))
        found["Learning curves of the champion"] = _embedded(learning_curves(champion.history, best))
    if (figure := _roc(champion, report.runner_up)) is not None:
        found["ROC on the validation split"] = _embedded(figure)
    return found


def _roc(champion: Side, runner_up: Side | None) -> "Figure | None":
    own = champion.contender.predictions
    if own is None:
        return None
    splits, thresholds = {"champion": (own.labels, own.probabilities)}, {"champion": champion.threshold}
    other = None if runner_up is None else runner_up.contender.predictions
    if runner_up is not None and other is not None and other.classes == own.classes:
        splits["runner-up"] = (other.labels, other.probabilities)
        thresholds["runner-up"] = runner_up.threshold
    return curves("roc", splits, readable(own.classes), thresholds)


def _embedded(figure: "Figure") -> str:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}"
