"""The split by patient."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.split import split_by_group
from src.errors import DataError


def split(
    groups: list[str], labels: list[int], seed: int = 0, val: float = 0.2, test: float = 0.2
) -> list[str]:
    return split_by_group(
        groups, [str(label) for label in labels], val_fraction=val, test_fraction=test, seed=seed
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=30, max_size=120), st.integers(0, 5), st.randoms())
def test_patients_stay_together_whatever_the_order(
    patients: list[int], seed: int, shuffle: random.Random
) -> None:
    groups = [f"p{number}" for number in patients] + [f"q{i}" for i in range(20)]
    labels = [number % 2 for number in patients] + [i % 2 for i in range(20)]
    sides = dict(zip(groups, split(groups, labels, seed), strict=True))
    order = list(range(len(groups)))
    shuffle.shuffle(order)
    again = split([groups[i] for i in order], [labels[i] for i in order], seed)
    assert [sides[groups[i]] for i in order] == again
    for label in (0, 1):
        assert {sides[g] for g, own in zip(groups, labels, strict=True) if own == label} == {
            "train",
            "val",
            "test",
        }


def test_fractions_hold_within_each_class() -> None:
    labels = [0] * 100 + [1] * 20
    sides = split([f"p{i}" for i in range(120)], labels, val=0.1, test=0.25)
    for start, stop in ((0, 100), (100, 120)):
        part = sides[start:stop]
        assert part.count("val") == (stop - start) // 10
        assert part.count("test") == (stop - start) // 4


def test_the_seed_decides() -> None:
    groups, labels = [f"p{i}" for i in range(40)], [i % 2 for i in range(40)]
    assert split(groups, labels, 1) == split(groups, labels, 1)
    assert split(groups, labels, 1) != split(groups, labels, 2)


def test_no_test_split_where_none_is_wanted() -> None:
    assert set(split([f"p{i}" for i in range(10)], [0, 1] * 5, test=0.0)) == {"train", "val"}


def test_too_few_patients_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        DataError, match="class 1 has 2 patients, too few for train, val and test: 3 at least"
    ):
        split(["a", "b", "c", "d", "e"], [0, 0, 0, 1, 1])
    with pytest.raises(DataError, match="leave nothing to train on"):
        split(["a"], [0], val=0.5, test=0.5)
