"""Select the best run of a group and decide whether it replaces the champion; no store, no files."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from ..evaluation.auc import Difference, is_better
from ..tracking.stored_run import StoredRun
from .state import Incumbent, State

Fingerprints = tuple[str | None, str | None]
OTHER_DATA, ROLLED_BACK, LEAKY = "other data", "rolled back", "with a leak"
"""Reasons for leaving runs out."""


@dataclass(frozen=True)
class Rules:
    """What the user requires of a promotion.

    Attributes:
        min_auc: Lowest allowed val AUC.
        significant: Level that the p value of the gain must stay below, None for no test.
        force: Promote the best run regardless of the incumbent, the lowest val AUC, the test and a rollback.
        new_data: Replace an incumbent that was trained on other data.
        verify: Check the run's val AUC before it is promoted.
    """

    min_auc: float | None = None
    significant: float | None = None
    force: bool = False
    new_data: bool = False
    verify: bool = True


_NO_RULES = Rules()


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

    rules: Rules = _NO_RULES
    model: str | None = None
    modality: str | None = None
    experiment: str | None = None
    data_fingerprint: str | None = None
    dry_run: bool = False


class Verdict(Enum):
    """What happens to the best run."""

    PROMOTE = "promote"
    KEEP = "keep"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Selection:
    """The runs of one group that compete.

    Attributes:
        comparable: All runs on the data that the group is compared on.
        ranked: Those of them that may be promoted, best first.
        left_out: The runs that were left out, by reason.
    """

    comparable: Sequence[StoredRun] = ()
    ranked: Sequence[StoredRun] = ()
    left_out: Mapping[str, Sequence[StoredRun]] = field(default_factory=dict)

    def count(self, reason: str) -> int:
        """Return how many runs were left out for a reason."""
        return len(self.left_out.get(reason, ()))


def select(
    candidates: Iterable[StoredRun], request: Request, state: State, refused: Collection[str]
) -> Selection:
    """Select the runs of one group that compete.

    Args:
        candidates: All runs of the group.
        request: What the user wants.
        state: What the group has now.
        refused: Ids of runs whose val AUC could not be verified.
    """
    # First, since the newest leaky run must not decide on which data the others are compared.
    clean, leaky = _split(candidates, lambda run: request.rules.force or not run.is_leaky)
    wanted = pick_fingerprints(clean, request.data_fingerprint)
    comparable, other_data = _split(clean, lambda run: run.fingerprints == wanted)
    back = frozenset() if request.rules.force else state.rolled_back
    allowed, rolled_back = _split(comparable, lambda run: run.run_id not in back)
    ranked = rank([run for run in allowed if run.run_id not in refused])
    return Selection(comparable, ranked, {OTHER_DATA: other_data, ROLLED_BACK: rolled_back, LEAKY: leaky})


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


def is_same(candidate: StoredRun, incumbent: Incumbent | None) -> bool:
    """Return whether a run is the incumbent itself, without an improvement since."""
    if incumbent is None or candidate.run_id != incumbent.run_id:
        return False
    return not is_better(candidate.val_auc, incumbent.val_auc)


def competed_since(comparable: Sequence[StoredRun], incumbent: Incumbent | None, state: State) -> int:
    """Count the runs that a challenger was chosen among, at least one.

    These are the runs that ended after the champion was promoted, or the number of runs that were not ranked
    then (such as older runs of an experiment that was left out), whichever is larger; all runs but the
    champion if its promotion is not known.
    """
    run_id = None if incumbent is None else incumbent.run_id
    others = [run for run in comparable if run.run_id != run_id]
    won = state.promotions.get(run_id or "")
    if won is None:
        return max(len(others), 1)
    promoted = datetime.fromisoformat(won.time).timestamp() * 1000
    ended = sum(run.end_time is None or run.end_time > promoted for run in others)
    return max(ended, len(comparable) - (won.runs or 0), 1)


def judge(
    best: StoredRun,
    incumbent: Incumbent | None,
    difference: Difference | None,
    rules: Rules,
    *,
    runs: int = 1,
    is_leaky: bool = False,
) -> tuple[Verdict, str]:
    """Decide on the best run of a group, and return the reason.

    Args:
        best: The first run of `rank`.
        incumbent: What the best run must beat.
        difference: The paired test of the two, None if it cannot be made.
        rules: What the user requires.
        runs: How many runs the best was chosen among since the incumbent was promoted.
        is_leaky: Whether the incumbent was allowed a leak, so that a clean run need not beat its score.
    """
    if is_leaky and not best.is_leaky:
        return _promote_unless(_below_floor(best, rules), "the champion was allowed a leak")
    if incumbent is None:
        return _promote_unless(_below_floor(best, rules), "the first of its group")
    if is_same(best, incumbent):
        return Verdict.KEEP, "the champion is the best run"
    if incumbent.fingerprints in (None, best.fingerprints):
        return _judge_comparable(best, incumbent, difference, rules, runs)
    if not rules.new_data:
        return (
            Verdict.REFUSE,
            "the champion is from other data, where AUCs do not compare; --new-data replaces it",
        )
    problem = _below_floor(best, rules) or _not_significant(None, rules, runs)
    return _promote_unless(problem, "the champion is from other data")


def nothing_left(selection: Selection) -> tuple[Verdict, str]:
    """Return verdict and reason for a group without a run that may be promoted."""
    if selection.count(LEAKY):
        return Verdict.REFUSE, (
            "every remaining run has a leak between its splits, allowed by data.on_leak, which may inflate "
            "its score; --force promotes it anyway"
        )
    return Verdict.KEEP, "no comparable run is left that was not refused or rolled back"


def adjust_p(p: float, runs: int) -> float:
    """Return a p value corrected for the best of so many runs (Bonferroni)."""
    return min(1.0, runs * p)


def _split(
    runs: Iterable[StoredRun], is_kept: Callable[[StoredRun], bool]
) -> tuple[list[StoredRun], list[StoredRun]]:
    kept: list[StoredRun] = []
    dropped: list[StoredRun] = []
    for run in runs:
        (kept if is_kept(run) else dropped).append(run)
    return kept, dropped


def _promote_unless(problem: str | None, reason: str) -> tuple[Verdict, str]:
    return (Verdict.PROMOTE, reason) if problem is None else (Verdict.REFUSE, problem)


def _judge_comparable(
    best: StoredRun, incumbent: Incumbent, difference: Difference | None, rules: Rules, runs: int
) -> tuple[Verdict, str]:
    gain = f"val AUC {best.val_auc:.4f} against {incumbent.val_auc:.4f}"
    if rules.force:
        return Verdict.PROMOTE, f"forced: {gain}"
    if not is_better(best.val_auc, incumbent.val_auc):
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
