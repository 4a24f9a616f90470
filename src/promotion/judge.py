"""Which run is the best, and whether it replaces the incumbent: no store, no file, only rules."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from ..evaluation.auc import Difference, is_better
from ..tracking.candidates import Candidate
from .state import Incumbent


@dataclass(frozen=True)
class Rules:
    """What the user asks of a promotion.

    Attributes:
        min_auc: Floor of the val AUC, itself allowed.
        significant: Level that the p value of the gain must stay below, None where no test is asked for.
        force: Promote the best run whatever the incumbent, the floor, the test and a rollback say.
        new_data: Replace an incumbent from other data.
        verify: Check the run's claim before it is promoted.
    """

    min_auc: float | None = None
    significant: float | None = None
    force: bool = False
    new_data: bool = False
    verify: bool = True


class Verdict(Enum):
    """What becomes of the best run."""

    PROMOTE = "promote"
    KEEP = "keep"
    REFUSE = "refuse"


def pick_fingerprints(candidates: Collection[Candidate], wanted: str | None) -> tuple[str, str] | None:
    """The data and split that a group's runs are compared on: the newest run's.

    Args:
        candidates: The runs of one group.
        wanted: How the data fingerprint starts, where the user says so; None takes the newest of all.
    """
    of_data = [c for c in candidates if wanted is None or c.data_fingerprint.startswith(wanted)]
    newest = max(of_data, key=lambda c: (c.start_time, c.run_id), default=None)
    return None if newest is None else newest.fingerprints


def rank(candidates: Collection[Candidate]) -> list[Candidate]:
    """Best first: by val AUC; of equals the earlier run, then the smaller id."""
    return sorted(candidates, key=lambda c: (-c.val_auc, c.start_time, c.run_id))


def is_same(candidate: Candidate, incumbent: Incumbent | None) -> bool:
    """Whether a run is the incumbent itself, and has not gained since."""
    if incumbent is None or candidate.run_id != incumbent.run_id:
        return False
    return not is_better(candidate.val_auc, incumbent.val_auc)


def judge(
    best: Candidate,
    incumbent: Incumbent | None,
    difference: Difference | None,
    rules: Rules,
    *,
    runs: int = 1,
    is_leaky: bool = False,
) -> tuple[Verdict, str]:
    """Decides on the best run of a group and says why.

    Args:
        best: The first of `rank`.
        incumbent: What holds now.
        difference: The paired test of the two, None where it cannot be made.
        rules: What the user asks.
        runs: How many runs the best was chosen among since the incumbent was promoted.
        is_leaky: Whether the incumbent was allowed a leak, so that its score is no bar for a clean run.
    """
    if is_leaky and not best.is_leaky:
        floor = _below_floor(best, rules)
        return (Verdict.REFUSE, floor) if floor else (Verdict.PROMOTE, "the champion was allowed a leak")
    if incumbent is None:
        floor = _below_floor(best, rules)
        return (Verdict.REFUSE, floor) if floor else (Verdict.PROMOTE, "the first of its group")
    if is_same(best, incumbent):
        return Verdict.KEEP, "the champion is the best run"
    if incumbent.fingerprints in (None, best.fingerprints):
        return _judge_comparable(best, incumbent, difference, rules, runs)
    if not rules.new_data:
        return (
            Verdict.REFUSE,
            "the champion is from other data, where AUCs do not compare; --new-data replaces it",
        )
    refused = _below_floor(best, rules) or _not_significant(None, rules, runs)
    return (Verdict.REFUSE, refused) if refused else (Verdict.PROMOTE, "the champion is from other data")


def nothing_left(leaky: int) -> tuple[Verdict, str]:
    """The verdict on a group without a run that may be promoted, ``leaky`` of them for a leak."""
    if leaky:
        return Verdict.REFUSE, (
            "no run is left but with a leak between its splits, allowed by data.on_leak, so that its score "
            "may be too good; --force promotes it all the same"
        )
    return Verdict.KEEP, "no comparable run is left that was not refused or rolled back"


def _judge_comparable(
    best: Candidate, incumbent: Incumbent, difference: Difference | None, rules: Rules, runs: int
) -> tuple[Verdict, str]:
    gain = f"val AUC {best.val_auc:.4f} against {incumbent.val_auc:.4f}"
    if rules.force:
        return Verdict.PROMOTE, f"forced: {gain}"
    if not is_better(best.val_auc, incumbent.val_auc):
        return Verdict.KEEP, f"no run is better than the champion: {gain}"
    refused = _below_floor(best, rules) or _not_significant(difference, rules, runs)
    return (Verdict.REFUSE, refused) if refused else (Verdict.PROMOTE, gain)


def _below_floor(best: Candidate, rules: Rules) -> str | None:
    if rules.force or rules.min_auc is None or best.val_auc >= rules.min_auc:
        return None
    return f"val AUC {best.val_auc:.4f} is below --min-auc {rules.min_auc:g}"


def adjusted(p: float, runs: int) -> float:
    """Return a p value corrected for the best of so many runs (Bonferroni)."""
    return min(1.0, runs * p)


def _not_significant(difference: Difference | None, rules: Rules, runs: int) -> str | None:
    if rules.force or rules.significant is None:
        return None
    if difference is None or math.isnan(difference.p):
        return "the gain cannot be tested: not both have stored predictions on the same samples"
    p = adjusted(difference.p, runs)
    if difference.value > 0 and p < rules.significant:
        return None
    chosen = "" if runs == 1 else f", times {runs} runs since the champion = {p:.3g}"
    return f"the gain is not significant: p = {difference.p:.3g}{chosen}, not below {rules.significant:g}"
