"""Retention by its rules, without a store."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from src.retention.plan import Rules, plan
from src.tracking.stored_run import StoredRun

DAY = 86_400_000
NOW = 100 * DAY
GROUP = {"model": "resnet18", "modality": "A", "data.fingerprint": "data"}


def past(run_id: str, val_auc: float | None = 0.5, age: float = 50, status: str = "FINISHED") -> StoredRun:
    ended = int(NOW - age * DAY)
    metrics = {} if val_auc is None else {"best_val_auc": val_auc}
    return StoredRun(
        run_id, status=status, start_time=ended - DAY, end_time=ended, metrics=metrics, tags=GROUP
    )


def actions(
    runs: list[StoredRun], rules: Rules, versions: dict[str, tuple[str, ...]] | None = None
) -> dict[str, str]:
    return {verdict.run.run_id: verdict.action for verdict in plan(runs, versions or {}, rules, NOW)}


def test_the_best_of_each_group_stay() -> None:
    runs = [past("a", 0.9), past("b", 0.7), past("c", 0.8)]
    other = [replace(past("d", 0.1), tags=GROUP | {"modality": "P"})]
    found = actions([*runs, *other], Rules(keep_best=2))
    assert found == {"a": "keep", "b": "checkpoints", "c": "keep", "d": "keep"}


def test_of_equal_runs_the_earlier_is_better() -> None:
    assert actions([past("late", age=40), past("early", age=60)], Rules(keep_best=1)) == {
        "late": "checkpoints",
        "early": "keep",
    }


def test_registered_unfinished_and_young_runs_stay_whatever_they_scored() -> None:
    runs = [
        past("registered", 0.1),
        replace(past("running", None, status="RUNNING"), end_time=None),
        past("young", 0.2, age=6.9),
        past("old", 0.2, age=7.1),
        replace(past("evaluation", None), tags=GROUP | {"role": "evaluation"}),
    ]
    found = actions(runs, Rules(keep_best=0), {"registered": ("resnet18_A version 1",)})
    assert found == dict.fromkeys(("registered", "running", "young", "evaluation"), "keep") | {
        "old": "checkpoints"
    }


def test_runs_without_a_result_go_and_take_no_place() -> None:
    runs = [
        past("failed", 0.99, status="FAILED"),
        past("nan", float("nan")),
        past("none", None),
        past("ok", 0.4),
    ]
    found = actions(runs, Rules(keep_best=1, runs=True))
    assert found == {"failed": "run", "nan": "run", "none": "run", "ok": "keep"}


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 90), st.sampled_from(["FINISHED", "KILLED"])), max_size=20
    ),
    st.integers(0, 5),
    st.floats(0, 30),
)
def test_what_is_dropped_is_worse_than_what_is_kept(
    made: list[tuple[float, float, str]], keep_best: int, keep_days: float
) -> None:
    runs = [past(str(i), auc, age, status) for i, (auc, age, status) in enumerate(made)]
    verdicts = plan(runs, {}, Rules(keep_best, keep_days), NOW)
    assert [verdict.run for verdict in verdicts] == runs
    finished = [v for v in verdicts if v.run.status == "FINISHED"]
    dropped = [v for v in finished if v.action != "keep"]
    assert all(NOW - (v.run.end_time or 0) >= keep_days * DAY for v in dropped)
    if dropped:
        best = max(v.run.val_auc or 0 for v in dropped)
        assert sum((v.run.val_auc or 0) >= best for v in finished if v.action == "keep") >= keep_best
