"""The rules alone."""

from dataclasses import replace
from typing import Any

import pytest

from src.evaluation.auc import Difference
from src.promotion.history import Action, Event, Group, promotions
from src.promotion.select import Rules, Verdict, competed_since, is_same, judge, pick_fingerprints, rank
from src.promotion.state import Contender, State
from src.tracking.registry import Registered
from src.tracking.stored_run import StoredRun


def candidate(run_id: str, auc: float = 0.8, start: int = 0, data: str = "d") -> StoredRun:
    tags = {"model": "m", "modality": "A", "data.fingerprint": data, "split.fingerprint": "s"}
    return StoredRun(run_id, start_time=start, metrics={"best_val_auc": auc}, tags=tags)


def test_the_highest_wins_then_the_earlier_then_the_smaller_id() -> None:
    runs = [candidate("d", 0.8, 3), candidate("b", 0.8, 2), candidate("a", 0.8, 2), candidate("c", 0.9, 9)]
    assert [run.run_id for run in rank(runs)] == ["c", "a", "b", "d"]


def test_the_newest_run_says_which_data() -> None:
    runs = [candidate("a", start=1, data="old"), candidate("b", start=5, data="new"), candidate("c", start=2)]
    assert pick_fingerprints(runs, None) == ("new", "s")
    assert pick_fingerprints(runs, "ol") == ("old", "s")
    assert pick_fingerprints(runs, "x") is None


def test_the_same_run_counts_again_only_with_a_gain() -> None:
    champion = Contender(0.8, "a", 1, ("d", "s"))
    assert is_same(candidate("a", 0.8), champion)
    assert not is_same(candidate("a", 0.81), champion)
    assert not is_same(candidate("b", 0.8), champion)


GAIN, NOISE, UNKNOWN = Difference(0.1, 0.01), Difference(0.1, 0.3), Difference(0.1, float("nan"))
HELD = Contender(0.7, "x", 1, ("d", "s"))
OTHER = Contender(0.9, "x", 1, ("other", "s"))
HAND_MADE = Contender(0.7)


@pytest.mark.parametrize(
    ("auc", "champion", "difference", "rules", "verdict", "reason"),
    [
        (0.8, None, None, {}, "PROMOTE", "the first of its group"),
        (0.8, None, None, {"min_auc": 0.81}, "REFUSE", "val AUC 0.8000 is below --min-auc 0.81"),
        (0.8, None, None, {"min_auc": 0.8}, "PROMOTE", "first"),
        (0.8, None, None, {"min_auc": 0.81, "force": True}, "PROMOTE", "first"),
        (0.8, None, None, {"significant": 0.05}, "PROMOTE", "first"),
        (0.8, HELD, NOISE, {}, "PROMOTE", "val AUC 0.8000 against 0.7000"),
        (0.7, HELD, None, {}, "KEEP", "no run is better"),
        (0.6, HELD, None, {"min_auc": 0.9}, "KEEP", "no run is better"),
        (0.6, HELD, None, {"force": True}, "PROMOTE", "forced: val AUC 0.6000 against 0.7000"),
        (0.8, HELD, GAIN, {"significant": 0.05}, "PROMOTE", "val AUC"),
        (0.8, HELD, NOISE, {"significant": 0.05}, "REFUSE", "p = 0.3, not below 0.05"),
        (0.8, HELD, Difference(0.1, 0.05), {"significant": 0.05}, "REFUSE", "not significant"),
        (0.8, HELD, Difference(-0.1, 0.01), {"significant": 0.05}, "REFUSE", "not significant"),
        (0.8, HELD, UNKNOWN, {"significant": 0.05}, "REFUSE", "cannot be tested"),
        (0.8, HELD, None, {"significant": 0.05}, "REFUSE", "cannot be tested"),
        (0.8, HELD, NOISE, {"significant": 0.05, "force": True}, "PROMOTE", "forced"),
        (0.8, HAND_MADE, None, {}, "PROMOTE", "val AUC 0.8000 against 0.7000"),
        (0.8, HAND_MADE, None, {"significant": 0.05}, "REFUSE", "cannot be tested"),
        (0.8, OTHER, None, {}, "REFUSE", "from other data"),
        (0.95, OTHER, None, {"force": True}, "REFUSE", "--new-data replaces it"),
        (0.8, OTHER, None, {"new_data": True}, "PROMOTE", "the champion is from other data"),
        (0.8, OTHER, None, {"new_data": True, "min_auc": 0.9}, "REFUSE", "below --min-auc"),
        (0.7, HELD, None, {"new_data": True}, "KEEP", "no run is better"),
    ],
)
def test_verdicts(
    auc: float,
    champion: Contender | None,
    difference: Difference | None,
    rules: dict[str, Any],
    verdict: str,
    reason: str,
) -> None:
    found, why = judge(candidate("a", auc), champion, difference, Rules(**rules))
    assert found is Verdict[verdict]
    assert reason in why


@pytest.mark.parametrize(
    ("p", "runs", "verdict", "reason"),
    [
        (0.01, 1, "PROMOTE", "val AUC"),
        (0.01, 4, "PROMOTE", "val AUC"),
        (0.01, 5, "REFUSE", "p = 0.01, times 5 runs since the champion = 0.05, not below 0.05"),
        (0.3, 20, "REFUSE", "p = 0.3, times 20 runs since the champion = 1, not below 0.05"),
    ],
)
def test_the_best_of_many_needs_a_smaller_p(p: float, runs: int, verdict: str, reason: str) -> None:
    rules = Rules(significant=0.05)
    found, why = judge(candidate("a", 0.8), HELD, Difference(0.1, p), rules, runs=runs)
    assert found is Verdict[verdict]
    assert reason in why


def state(*entries: Event) -> State:
    return State(Group("m", "A"), None, Registered("m_A"), 1, frozenset(), promotions(entries))


def promotion(action: Action, runs: int | None) -> Event:
    return Event("2026-01-01T00:00:00+00:00", action, "m", "A", "x", "why", runs=runs)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([promotion("promotion", 4)], 2),  # two have ended since
        ([promotion("promotion", 1)], 4),  # and two more were not ranked then
        ([promotion("rollback", 4)], 4),  # put back, which is no promotion: all others
        ([], 4),
    ],
)
def test_runs_since_the_champion(entries: list[Event], expected: int) -> None:
    won = 1767225600000  # the same time in milliseconds
    ends = {"x": won - 5, "a": won - 9, "b": won - 1, "c": won + 1, "d": None}
    runs = [replace(candidate(name), end_time=end) for name, end in ends.items()]
    assert competed_since(runs, HELD, state(*entries)) == expected
    assert competed_since(runs[:1], HELD, state(*entries)) == 1
