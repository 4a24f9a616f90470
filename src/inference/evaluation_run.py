"""Record an evaluation as its own MLflow run, linked to the evaluated model."""

import math
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..evaluation.intervals import Estimate
from ..evaluation.metrics import optimism
from ..evaluation.plots import save_figure
from ..tracking import names
from ..tracking.queries import count_evaluations
from ..tracking.registry import set_tags
from ..tracking.run import TrackedRun
from ..tracking.store import ui_instructions
from ..utils.cli import warn
from ..utils.console import is_interactive
from .evaluator import EvaluationResult, write_result
from .explain import Layer, draw_explanation
from .load_model import TrainedModel

ROLE = "evaluation"
_WIDE = 130
_TITLES = {"auc": "AUC", "acc": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}


def tags_of(trained: TrainedModel, result: EvaluationResult) -> dict[str, str]:
    """Return the tags that identify the evaluated model and its images."""
    labeled, version = result.labeled, trained.version
    about = {
        "name": trained.name,
        "split": labeled.split,
        "run_id": None if trained.run is None else trained.run.run_id,
        "version": None if version is None else str(version.number),
    }
    return {
        names.ROLE: ROLE,
        names.DATA_FINGERPRINT: labeled.data_fingerprint,
        names.SPLIT_FINGERPRINT: labeled.split_fingerprint,
        **{f"{names.EVALUATED_PREFIX}{key}": value for key, value in about.items() if value is not None},
    }


def record_evaluation(
    run: TrackedRun, trained: TrainedModel, result: EvaluationResult, layer: Layer | None, count: int
) -> Path:
    """Record scores, predictions and plots in the run; return the folder with copies of them.

    With a layer, ``count`` decisions of each kind are explained by Grad-CAM.
    """
    stamp = f"eval_{datetime.now():%Y%m%d_%H%M%S}_{run.run_id[:8]}"
    folder = trained.config.output_dir / stamp
    run.keep_in(folder)
    run.rename(f"{trained.name.replace(' ', '_')}_on_{result.labeled.split}")
    run.log_params({"threshold": trained.threshold, "split": result.labeled.split})
    if trained.source is not None:
        run.link_model(trained.source)
    table, plots = write_result(result, trained, folder)
    if layer is not None:
        figure = draw_explanation(trained, layer, result, count)
        plots.append(save_figure(folder / names.PLOTS / "grad_cam.png", figure, colors=256))
    run.log_artifact(table, names.PREDICTIONS)
    for path in plots:
        run.log_artifact(path, names.PLOTS)
    run.log_metrics(result.metrics(), step=0)
    return folder


def tag_version(trained: TrainedModel, result: EvaluationResult, run_id: str) -> None:
    """Record the scores of a registered version in its tags."""
    if trained.version is None:
        return
    name, area = trained.name.partition(" ")[0], result.by_image["auc"]
    recorded = f"AUC {_shown(area)}, {len(result.labeled.labels)} images, run {run_id}"
    set_tags(name, trained.version.number, {f"{names.EVALUATED_PREFIX}{result.labeled.split}": recorded})


def print_scores(result: EvaluationResult, trained: TrainedModel) -> None:
    """Print the scores, with the notes that limit them."""
    units = [("images", len(result.labeled.labels), result.by_image)]
    patients = result.patients
    if patients is not None and patients.left_out:
        warn(f"patients with images of several classes, left out by patient: {patients.left_out}")
    if patients is not None and result.by_patient:
        units.append(("patients", len(patients.labels), result.by_patient))
    table = Table(result.labeled.split, "n", *_TITLES.values(), title="with 95 % intervals")
    for unit, count, estimates in units:
        table.add_row(f"by {unit}", str(count), *(_shown(estimates[name]) for name in _TITLES))
    Console(width=None if is_interactive() else _WIDE).print(table)
    note = optimism(trained.config.evaluation.threshold)
    if note is not None and result.labeled.split in ("val", "all"):
        print(note)


def print_split_usage(split: str, fingerprint: str) -> None:
    """Print how often a split has been used for scoring, including this time; reuse weakens a test set."""
    trainings, evaluations = count_evaluations(fingerprint, split)
    print(
        f"this {split} split has now been scored by {trainings} training run{'s' * (trainings != 1)} "
        f"and {evaluations} evaluation{'s' * (evaluations != 1)}; the more often, the less a good score on "
        "it means"
    )


def print_location(run: TrackedRun, folder: Path) -> None:
    """Print the run id, the folder, and how to open the run in the MLflow UI."""
    print(f"run          {run.run_id}")
    print(f"files        {folder}")
    print(f"look at it   {ui_instructions(run.info.experiment_id)}")


def _shown(found: Estimate) -> str:
    if math.isnan(found.low):
        return f"{found.value:.3f} ({found.note})"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
