"""Which runs keep what: a pure function of what is known of them, and of the rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..evaluation.auc import is_better

_DAY = 86_400_000  # milliseconds
_ENDED = ("FINISHED", "FAILED", "KILLED")

Action = Literal["keep", "checkpoints", "run"]
"""Keep everything, drop the checkpoints, or drop the whole run."""


@dataclass(frozen=True)
class Past:
    """A run, as far as retention needs to know it.

    Attributes:
        run_id: Its id.
        name: Its name.
        competes_in: Model, modality and data: what it is ranked within; None for a run of
            another kind.
        status: MLflow's status.
        val_auc: Its ``best_val_auc``, None where it has none.
        started: Milliseconds since the epoch.
        ended: Likewise; None while it has not.
        versions: The registered versions that are of it, such as ``resnet18_A version 2``.
    """

    run_id: str
    name: str
    competes_in: tuple[str, str, str] | None
    status: str
    val_auc: float | None
    started: int
    ended: int | None
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What is kept beside registered versions and unfinished runs.

    Attributes:
        keep_best: So many runs of each model, modality and data, by val AUC.
        keep_days: Everything that ended less than so many days ago.
        runs: Drop whole runs and not their checkpoints alone.
    """

    keep_best: int = 3
    keep_days: float = 7.0
    runs: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is to become of a run, and why."""

    run: Past
    action: Action
    reason: str


def plan(runs: Sequence[Past], rules: Rules, now: int) -> list[Verdict]:
    """Decides about every run.

    Args:
        runs: All runs of the store.
        rules: The rules.
        now: Milliseconds since the epoch.

    Returns:
        One verdict per run, in the same order.
    """
    places = _places(runs)
    return [_judge(run, rules, now, places.get(run.run_id)) for run in runs]


def _judge(run: Past, rules: Rules, now: int, place: int | None) -> Verdict:
    if run.versions:
        return Verdict(run, "keep", f"registered: {', '.join(run.versions)}")
    if run.status not in _ENDED or run.ended is None:
        return Verdict(run, "keep", "unfinished")
    if run.competes_in is None:
        return Verdict(run, "keep", "trains no candidate")
    if now - run.ended < rules.keep_days * _DAY:
        return Verdict(run, "keep", f"younger than {rules.keep_days:g} days")
    if place is not None and place <= rules.keep_best:
        return Verdict(run, "keep", f"among the best {rules.keep_best} of its group")
    where = "without a result" if place is None else f"number {place} of its group"
    return Verdict(run, "run" if rules.runs else "checkpoints", f"{where}, {_days(now - run.ended)} old")


def _places(runs: Sequence[Past]) -> Mapping[str, int]:
    """The place of each finished run in its group, from 1; of equal ones the earlier is better."""
    groups: dict[tuple[str, str, str], list[Past]] = {}
    for run in runs:
        has_score = run.val_auc is not None and is_better(run.val_auc, None)
        if run.competes_in is not None and run.status == "FINISHED" and has_score:
            groups.setdefault(run.competes_in, []).append(run)
    ranked = (
        sorted(group, key=lambda run: (-(run.val_auc or 0.0), run.started)) for group in groups.values()
    )
    return {run.run_id: place for group in ranked for place, run in enumerate(group, start=1)}


def _days(milliseconds: int) -> str:
    return f"{milliseconds / _DAY:.0f} days"
