"""Select the best run of a group and decide whether it replaces the champion; no store, no files."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from ..evaluation.auc import Difference, is_better
from ..tracking.stored_run import StoredRun
from .state import Contender, Fingerprints, State

OTHER_DATA, ROLLED_BACK, LEAKY = "other data", "rolled back", "with a leak"
"""Reasons for leaving runs out."""


@dataclass(frozen=True)
class Rules:
    """What the user requires of a promotion.

    Attributes:
        min_auc: Lowest allowed val AUC.
        significant: Level that the p value of the gain must stay below, None for no test.
        force: Promote the best run regardless of the champion, the lowest val AUC, the test and a rollback.
        new_data: Replace a champion that was trained on other data.
        verify: Check the run's val AUC before it is promoted.
    """

    min_auc: float | None = None
    significant: float | None = None
    force: bool = False
    new_data: bool = False
    verify: bool = True


@dataclass(frozen=True)
class Request:
    """What the user wants to promote, and how.

    Attributes:
        rules: What a run must fulfill.
        model: Only groups of this model.
        modality: Only groups of this modality.
        experiment: Only runs of this experiment.
        data_fingerprint: Compare on the data whose fingerprint starts like this instead of the newest data.
        dry_run: Decide and verify, but write nothing.
    """

    rules: Rules = Rules()
    model: str | None = None
    modality: str | None = None
    experiment: str | None = None
    data_fingerprint: str | None = None
    dry_run: bool = False


class Verdict(Enum):
    """What happens to a group; the value is for display."""

    PROMOTE = "promoted"
    KEEP = "kept"
    REFUSE = "refused"
    FAIL = "failed"


@dataclass(frozen=True)
class Selection:
    """The runs of one group that compete.

    Attributes:
        comparable: All runs on the data that the group is compared on.
        ranked: Those of them that may be promoted, best first.
        left_out: The runs that were left out, by reason.
    """

    comparable: Sequence[StoredRun]
    ranked: Sequence[StoredRun]
    left_out: Mapping[str, Sequence[StoredRun]]


def select(
    candidates: Collection[StoredRun], request: Request, state: State, unverified: Collection[str]
) -> Selection:
    """Select the runs of one group that compete.

    Args:
        candidates: All runs of the group.
        request: What the user wants.
        state: What the group has now.
        unverified: Ids of runs whose val AUC could not be verified.
    """
    force = request.rules.force
    # First, since the newest leaky run must not decide on which data the others are compared.
    clean = [run for run in candidates if force or not run.is_leaky]
    wanted = pick_fingerprints(clean, request.data_fingerprint)
    comparable = [run for run in clean if run.fingerprints == wanted]
    rolled_back = frozenset() if force else state.rolled_back
    excluded = rolled_back.union(unverified)
    ranked = rank([run for run in comparable if run.run_id not in excluded])
    left_out = {
        OTHER_DATA: [run for run in clean if run.fingerprints != wanted],
        ROLLED_BACK: [run for run in comparable if run.run_id in rolled_back],
        LEAKY: [run for run in candidates if run.is_leaky and not force],
    }
    return Selection(comparable, ranked, left_out)


def pick_fingerprints(candidates: Collection[StoredRun], wanted: str | None) -> Fingerprints | None:
    """Return the data and split that a group's runs are compared on: those of the newest run.

    Args:
        candidates: The runs of one group.
        wanted: How the data fingerprint starts, if the user chose it; None for the newest of all runs.
    """
    of_data = [run for run in candidates if wanted is None or (run.data_fingerprint or "").startswith(wanted)]
    newest = max(of_data, key=lambda run: (run.start_time, run.run_id), default=None)
    return None if newest is None else newest.fingerprints


def rank(candidates: Collection[StoredRun]) -> list[StoredRun]:
    """Sort runs by val AUC, best first; of equal runs the earlier, then the smaller id comes first."""
    return sorted(candidates, key=lambda run: (-run.val_auc, run.start_time, run.run_id))


def is_same(candidate: StoredRun, champion: Contender | None) -> bool:
    """Return whether a run is the champion itself, without an improvement since."""
    if champion is None or candidate.run_id != champion.run_id:
        return False
    return not is_better(candidate.val_auc, champion.val_auc)


def competed_since(comparable: Sequence[StoredRun], champion: Contender | None, state: State) -> int:
    """Count the runs that a candidate was chosen among, at least one.

    These are the runs that ended after the champion was promoted, or the number of runs that were not ranked
    then (such as older runs of an experiment that was left out), whichever is larger; all runs but the
    champion if its promotion is not known.
    """
    run_id = None if champion is None else champion.run_id
    others = [run for run in comparable if run.run_id != run_id]
    promotion = state.promotions.get(run_id or "")
    if promotion is None:
        return max(len(others), 1)
    promoted = datetime.fromisoformat(promotion.time).timestamp() * 1000
    ended = sum(run.end_time is None or run.end_time > promoted for run in others)
    return max(ended, len(comparable) - (promotion.runs or 0), 1)


def judge(
    best: StoredRun, champion: Contender | None, difference: Difference | None, rules: Rules, *, runs: int = 1
) -> tuple[Verdict, str]:
    """Decide on the best run of a group, and return the reason.

    Args:
        best: The first run of `rank`.
        champion: What the best run must beat.
        difference: The paired test of the two, None if it cannot be made.
        rules: What the user requires.
        runs: How many runs the best was chosen among since the champion was promoted.
    """
    if champion is None:
        return _promote_unless(_below_floor(best, rules), "the first of its group")
    if champion.is_leaky and not best.is_leaky:  # a clean run need not beat its score
        return _promote_unless(_below_floor(best, rules), "the champion was allowed a leak")
    if is_same(best, champion):
        return Verdict.KEEP, "the champion is the best run"
    if None in champion.fingerprints or champion.fingerprints == best.fingerprints:
        return _judge_comparable(best, champion, difference, rules, runs)
    if not rules.new_data:
        return (
            Verdict.REFUSE,
            "the champion is from other data, where AUCs do not compare; --new-data replaces it",
        )
    problem = _below_floor(best, rules) or _not_significant(None, rules, runs)
    return _promote_unless(problem, "the champion is from other data")


def nothing_left(selection: Selection) -> tuple[Verdict, str]:
    """Return verdict and reason for a group without a run that may be promoted."""
    if selection.left_out[LEAKY]:
        return Verdict.REFUSE, (
            "every remaining run has a leak between its splits, allowed by data.on_leak, which may inflate "
            "its score; --force promotes it anyway"
        )
    return Verdict.KEEP, "no comparable run is left that was not refused or rolled back"


def adjust_p(p: float, runs: int) -> float:
    """Return a p value corrected for the best of so many runs (Bonferroni)."""
    return min(1.0, runs * p)


def _promote_unless(problem: str | None, reason: str) -> tuple[Verdict, str]:
    return (Verdict.PROMOTE, reason) if problem is None else (Verdict.REFUSE, problem)


def _judge_comparable(
    best: StoredRun, champion: Contender, difference: Difference | None, rules: Rules, runs: int
) -> tuple[Verdict, str]:
    gain = f"val AUC {best.val_auc:.4f} against {champion.val_auc:.4f}"
    if rules.force:
        return Verdict.PROMOTE, f"forced: {gain}"
    if not is_better(best.val_auc, champion.val_auc):
        return Verdict.KEEP, f"no run is better than the champion: {gain}"
    return _promote_unless(_below_floor(best, rules) or _not_significant(difference, rules, runs), gain)


def _below_floor(best: StoredRun, rules: Rules) -> str | None:
    if rules.force or rules.min_auc is None or best.val_auc >= rules.min_auc:
        return None
    return f"val AUC {best.val_auc:.4f} is below --min-auc {rules.min_auc:g}"


def _not_significant(difference: Difference | None, rules: Rules, runs: int) -> str | None:
    if rules.force or rules.significant is None:
        return None
    if difference is None or math.isnan(difference.p):
        return "the gain cannot be tested: not both have stored predictions on the same samples"
    p = adjust_p(difference.p, runs)
    if difference.value > 0 and p < rules.significant:
        return None
    factor = "" if runs == 1 else f", times {runs} runs since the champion = {p:.3g}"
    return f"the gain is not significant: p = {difference.p:.3g}{factor}, not below {rules.significant:g}"
