"""The page: one HTML file with everything in it, so that it opens anywhere, without a network."""

import base64
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation.intervals import Estimate
from ..evaluation.plots import learning_curves, readable
from ..evaluation.score_plots import curves
from .gather import GroupReport, Side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "page.html"


def render(reports: Sequence[GroupReport], store: str) -> str:
    """The page as text.

    Args:
        reports: The groups.
        store: What to call the store.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "estimate": _estimate}
    pictures = {report.group.name: _pictures(report) for report in reports}
    return environment.get_template(_TEMPLATE).render(
        reports=reports, pictures=pictures, store=store, made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _estimate(found: Estimate) -> str:
    if math.isnan(found.low):
        return f"{_number(found.value)} ({found.note})"
    return f"{_number(found.value)} ({_number(found.low)} to {_number(found.high)})"


def _pictures(report: GroupReport) -> dict[str, str]:
    """Pictures as ``data:`` URIs by their title; without those that lack what they show."""
    champion, found = report.champion, dict[str, str]()
    if champion is None:
        return found
    if champion.history:
        best = int(champion.run.metrics.get("best_epoch", 0))
        found["Learning curves of the champion"] = _embedded(learning_curves(champion.history, best))
    figure = _roc(champion, report.runner_up)
    if figure is not None:
        found["ROC on the validation split"] = _embedded(figure)
    return found


def _roc(champion: Side, runner_up: Side | None) -> "Figure | None":
    sides = {"champion": champion, "runner-up": runner_up}
    there = {name: side for name, side in sides.items() if side and side.standing.predictions}
    if "champion" not in there:
        return None
    splits, thresholds = {}, {}
    classes: tuple[str, ...] = ()
    for name, side in there.items():
        predictions = side.standing.predictions
        if predictions is not None and (not classes or predictions.classes == classes):
            classes = predictions.classes
            splits[name] = (predictions.labels, predictions.probabilities)
            thresholds[name] = side.threshold
    return curves("roc", splits, readable(classes), thresholds)


def _embedded(figure: "Figure") -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = BytesIO()
    FigureCanvasAgg(figure).print_figure(drawn, format="png", dpi=figure.dpi)
    return f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}"
