"""Workers that share a search: each trial once, none lost."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from src.errors import ConfigError, UserError
from src.search.space import Parameter, Space
from src.search.study import BEAT, RETRY_OF, RUN, Search, check_settings, open_search
from src.tracking.heartbeat import Heartbeat

SPACE = Space({"training.learning_rate": Parameter(log=(1e-4, 1e-2))}, "space.yaml")


@pytest.fixture(params=["", "sqlite:///study.db"], ids=["file", "database"])
def storage(request: pytest.FixtureRequest, folder: Path) -> str:
    del folder  # which the database is in
    return str(request.param)


def join(storage: str, trials: int = 3) -> Search:
    """As another process would."""
    return open_search("s", storage, Path("sweep"), trials, seed=0)[0]


def dead() -> str:
    return replace(Heartbeat.now(), pid=2**22 - 1).to_json()


def test_as_many_trials_as_asked_for_over_all_workers(storage: str) -> None:
    join(storage)

    def work(_: int) -> int:
        search, done = join(storage, 7), 0
        while not search.is_all_begun:
            if (trial := search.next()) is not None:
                SPACE.suggest(trial)
                search.study.tell(trial, 0.5)
                done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(work, range(4)))
    search = join(storage, 7)
    assert sum(counts) == len(search.best()) == 7
    assert search.is_done


def test_a_dead_workers_trial_is_tried_again_once(storage: str) -> None:
    first = join(storage)
    lost = first.next()
    assert lost is not None
    values = SPACE.suggest(lost)
    lost.set_user_attr(RUN, "r1")
    others = [join(storage), join(storage)]
    assert all(other.next() is not None for other in others)  # it lives: nothing to try again, two new ones
    assert others[0].next() is None
    lost.set_user_attr(BEAT, dead())
    again = [other.next() for other in others]
    retried = [trial for trial in again if trial is not None]
    assert len(retried) == 1
    assert retried[0].user_attrs[RETRY_OF] == lost.number
    assert retried[0].user_attrs[RUN] == "r1"
    assert SPACE.suggest(retried[0]) == values
    assert not first.is_done
    retried[0].set_user_attr(BEAT, dead())  # and once more
    once_more = others[1].next()
    assert once_more is not None
    assert SPACE.suggest(once_more) == values
    others[1].study.tell(once_more, 0.9)
    assert [trial.number for trial in join(storage).best()] == [once_more.number]
    assert len(join(storage).current()) == 3


def test_who_dies_while_it_rescues_loses_and_doubles_nothing(storage: str) -> None:
    search = join(storage, 1)
    lost = search.next()
    assert lost is not None
    SPACE.suggest(lost)
    lost.set_user_attr(BEAT, dead())
    # Two have put it up again, and died before they could end the old attempt.
    for _ in range(2):
        search.study.enqueue_trial(lost.params, {RETRY_OF: lost.number})
    taken = [trial for trial in (join(storage, 1).next() for _ in range(4)) if trial is not None]
    assert len(taken) == 1
    search.study.tell(taken[0], 0.7)
    assert search.is_done
    assert [trial.value for trial in search.current()] == [0.7]
    states = {trial.number: trial.state for trial in search.study.get_trials()}
    assert states[lost.number] == TrialState.FAIL


def test_one_too_many_whose_worker_dies_at_once_is_not_tried_again(storage: str) -> None:
    search = join(storage, 1)
    first = search.next()
    assert first is not None
    for _ in range(2):  # they ask at the same time, and die before they can say that it is one too many
        search.study.ask().set_user_attr(BEAT, dead())
    assert join(storage, 1).next() is None
    states = [trial.state for trial in search.study.get_trials()]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.FAIL]
    assert [trial.number for trial in join(storage, 2).all()] == [0]


def test_another_search_under_the_same_name_is_refused(storage: str) -> None:
    search, is_new = open_search("s", storage, Path("sweep"), 3, seed=0)
    assert is_new
    check_settings(search, is_new, {"a": 1}, "s", SPACE)
    check_settings(search, False, {"a": 1}, "s", SPACE)
    with pytest.raises(ConfigError, match="begun with other settings"):
        check_settings(search, False, {"a": 2}, "s", SPACE)


def test_a_database_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(UserError, match="--storage"):
        open_search("s", "postgresql://localhost:1/none", Path("sweep"), 3, seed=0)
