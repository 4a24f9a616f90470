"""How far a search has come: a table, plots, and a record of every trial."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..evaluation.plots import legend_below, new_figure
from ..utils.io import atomic_file, atomic_write_text
from ..utils.tables import escape_formula
from .study import REASON, RUN, Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

TRIALS = "trials.csv"
_STATUS = {"COMPLETE": "finished", "FAIL": "failed"}


def metrics(search: Search) -> dict[str, float]:
    """Numbers of a search so far, for its run."""
    current, best = search.current(), search.best()
    counted = [trial.state.name for trial in current]
    found = {f"trials_{name.lower()}": float(counted.count(name)) for name in ("COMPLETE", "PRUNED", "FAIL")}
    if best:
        found |= {"best_trial": float(best[0].number), "best_trial_val_auc": best[0].value or 0.0}
    return found


def write_summary(search: Search, folder: Path) -> list[Path]:
    """Writes the table of trials and the plots; returns the files."""
    table = folder / TRIALS
    atomic_write_text(table, _trials_table(search))
    figures = {"optimization_history": _history(search)}
    if (importance := _importance(search)) is not None:
        figures["parameter_importance"] = importance
    files = [table]
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        with atomic_file(files[-1]) as file:
            figure.savefig(file, format="png")
    return files


def _trials_table(search: Search) -> str:
    trials = search.current()
    keys = sorted({key for trial in trials for key in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "val_auc", "epochs", "run_id", "reason", *keys])
    for trial in trials:
        found: list[Any] = [trial.number, _status(trial), trial.value, trial.last_step]
        found += [trial.user_attrs.get(name, "") for name in (RUN, REASON)]
        found += [trial.params.get(key, "") for key in keys]
        writer.writerow([escape_formula(cell) if isinstance(cell, str) else cell for cell in found])
    return text.getvalue()


def _status(trial: "FrozenTrial") -> str:
    return _STATUS.get(trial.state.name, trial.state.name.lower())


def _history(search: Search) -> "Figure":
    """The value of each trial, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    reached = [(t.number, _reached(t), t.state.name == "PRUNED") for t in search.current()]
    for is_pruned, label, marker in ((False, "finished", "o"), (True, "pruned, as far as it came", "x")):
        points = [(number, value) for number, value, pruned in reached if value and pruned == is_pruned]
        if points:
            axes.plot(
                *zip(*points, strict=True), marker, color="#D55E00" if is_pruned else "#0072B2", label=label
            )
    best, line = None, []
    for trial in sorted(search.best(), key=lambda trial: trial.number):
        best = max(best or 0.0, trial.value or 0.0)
        line.append((trial.number, best))
    if line:
        axes.step(*zip(*line, strict=True), where="post", color="#555555", label="best so far")
    axes.set(xlabel="trial", ylabel="best val AUC", title=f"{len(search.best())} trials finished")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if any(value for _, value, _ in reached):
        legend_below(figure, axes, columns=3)
    return figure


def _reached(trial: "FrozenTrial") -> float | None:
    return trial.value if trial.value is not None else max(trial.intermediate_values.values(), default=None)


def _importance(search: Search) -> "Figure | None":
    """How much of the variance each setting explains, by a random forest (fANOVA); None where none can."""
    import optuna

    if len({trial.value for trial in search.best()}) < 4:
        return None
    try:
        found = optuna.importance.get_param_importances(
            search.study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (ValueError, RuntimeError):  # settings that only some trials have
        return None
    figure = new_figure(7, 1.4 + 0.35 * len(found))
    axes = figure.subplots()
    axes.barh(list(found)[::-1], list(found.values())[::-1], color="#0072B2")
    axes.set(xlabel="share of the explained variance of val AUC (fANOVA)", xlim=(0, 1))
    return figure


def trials_shown(search: Search, count: int = 5) -> Table:
    """The best trials side by side, for a terminal."""
    best = search.best()[:count]
    table = Table("", *(f"trial {trial.number}" for trial in best))
    table.add_row("val AUC", *(f"{trial.value:.4f}" for trial in best), end_section=True)
    for key in sorted({key for trial in best for key in trial.params}):
        table.add_row(key, *(_short(trial.params.get(key, "")) for trial in best))
    return table


def _short(value: Any) -> str:  # noqa: ANN401
    return f"{value:.3g}" if isinstance(value, float) else str(value)
