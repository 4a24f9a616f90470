"""The split by patient."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.split import merge_groups, split_by_group, split_by_image
from src.errors import DataError


def split(
    groups: list[str], labels: list[int], seed: int = 0, val: float = 0.2, test: float = 0.2
) -> list[str]:
    return split_by_group(
        groups, [str(label) for label in labels], val_fraction=val, test_fraction=test, seed=seed
    )


def by_image(groups: list[str], labels: list[int], seed: int, val: float, test: float) -> list[str]:
    return split_by_image(
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


def uneven(seed: int, patients: int = 40) -> tuple[list[str], list[int]]:
    """Patients of one class each with 1 to 10 images."""
    random = np.random.default_rng(seed)
    counts, labels = random.integers(1, 11, patients), np.arange(patients) % 2
    groups = [f"p{i:02d}" for i in range(patients)]
    return np.repeat(groups, counts).tolist(), np.repeat(labels, counts).tolist()


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [((0.15, 0.15), (0.143, 0.143)), ((0.1, 0.3), (0.1, 0.3)), ((0.2, 0.0), (0.2, 0.0))],
)
def test_images_are_stratified_where_patients_have_different_numbers(
    fractions: tuple[float, float], expected: tuple[float, float]
) -> None:
    for seed in range(4):
        groups, labels = uneven(seed)
        found = by_image(groups, labels, seed, *fractions)
        sides = np.array(found)
        for name, share in zip(("val", "test"), expected, strict=True):
            chosen = np.array(labels)[sides == name]
            assert len(chosen) / len(labels) == pytest.approx(share, abs=0.03)
            assert len(chosen) == 0 or abs(chosen.mean() - np.mean(labels)) < 0.1
        assert not {g for g, s in zip(groups, found, strict=True) if s == "train"} & {
            g for g, s in zip(groups, found, strict=True) if s != "train"
        }
        order = np.random.default_rng(seed).permutation(len(groups))
        again = by_image([groups[i] for i in order], [labels[i] for i in order], seed, *fractions)
        assert (sides[order] == again).all()


def test_the_seed_decides_where_the_largest_patient_is() -> None:
    groups, labels = uneven(0)
    largest = groups.index(max(groups, key=groups.count))
    assert {by_image(groups, labels, seed, 0.2, 0.2)[largest] for seed in range(12)} == {
        "train",
        "val",
        "test",
    }


def test_a_rare_class_reaches_every_split() -> None:
    groups, labels = [f"p{i}" for i in range(60)], [0] * 57 + [1] * 3
    sides = by_image(groups, labels, 0, 0.15, 0.15)
    assert sorted(sides[57:]) == ["test", "train", "val"]
    with pytest.raises(
        DataError, match="class 1 has 2 patients, too few for train, val and test: 3 at least"
    ):
        by_image(groups[:-1], labels[:-1], 0, 0.15, 0.15)
    with pytest.raises(DataError, match="class 1 has 1 patient, too few for train and val: 2 at least"):
        by_image(groups[:-2], labels[:-2], 0, 0.15, 0.0)


def test_groups_are_merged_through_others() -> None:
    links = [("d", "b"), ("c", "d"), ("e", "f")]
    assert merge_groups(["a", "b", "c", "d", "e", "f"], links) == ["a", "b", "b", "b", "e", "e"]
    assert merge_groups(["x", "y"], []) == ["x", "y"]
