"""Intervals against SciPy's, and against what is known of clusters."""

import numpy as np
import pytest
from scipy.stats import binomtest

from src.evaluation.intervals import by_patient, estimate, few_units, proportion


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (3, 10), (90, 100), (1, 1)])
def test_a_share_of_independent_samples_has_wilsons_interval(hits: int, count: int) -> None:
    found = proportion(np.arange(count) < hits, np.arange(count))
    wilson = binomtest(hits, count).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / count, wilson.low, wilson.high))


@pytest.mark.parametrize("hits", [8, 0])
def test_copies_of_a_sample_say_no_more_than_it(hits: int) -> None:
    once = np.arange(20) < hits
    alone, copied = (
        proportion(once, np.arange(20)),
        proportion(np.repeat(once, 5), np.repeat(np.arange(20), 5)),
    )
    # Between 20 units the variance is estimated, and t has 19 degrees of freedom.
    assert copied.value == alone.value
    width = copied.high - copied.low
    assert alone.high - alone.low <= width * 1.001
    assert width == pytest.approx(alone.high - alone.low, rel=0.1)


def test_unrelated_samples_of_a_unit_are_never_more_than_there_are() -> None:
    hits = np.tile([True, False], 50)
    paired, alone = proportion(hits, np.repeat(np.arange(50), 2)), proportion(hits, np.arange(100))
    assert (paired.low, paired.high) == pytest.approx((alone.low, alone.high), abs=0.004)  # t, 49
    assert paired.low <= alone.low


def test_intervals_cover_as_often_as_they_say() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        rates = random.beta(8, 2, 40)  # patients differ: their images are alike
        hits = random.random((40, 5)) < rates[:, None]
        found = proportion(hits.ravel(), np.repeat(np.arange(40), 5))
        covered += found.low <= 0.8 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_scores_of_two_and_of_three_classes() -> None:
    random = np.random.default_rng(1)
    for classes in (2, 3):
        labels = np.arange(90) % classes
        probabilities = random.dirichlet(np.ones(classes), 90) + 0.8 * np.eye(classes)[labels]
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        found = estimate(labels, probabilities, [None] * 90, 0.5)
        assert set(found) == {"auc", "acc", "sensitivity", "specificity"}
        for one in found.values():
            assert 0 <= one.low < one.value <= one.high <= 1
        decided = probabilities.argmax(axis=1)
        recalls = [(decided[labels == c] == c).mean() for c in range(classes)]
        expected = recalls[1] if classes == 2 else np.mean(recalls)
        assert found["sensitivity"].value == pytest.approx(expected)


def test_patients_are_means_of_their_images_and_mixed_ones_are_left_out() -> None:
    labels = np.array([0, 0, 1, 1, 0])
    probabilities = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    found = by_patient(labels, probabilities, [4, 4, 7, 9, 9])
    assert found is not None
    assert found.left_out == 1
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_allclose(found.probabilities, [[0.7, 0.3], [0.1, 0.9]])
    assert by_patient(labels, probabilities, [1, None, 2, 3, 4]) is None


def test_macro_rates_of_one_are_not_certain_and_lie_between_one_class_and_all() -> None:
    labels = np.arange(90) % 3
    found = estimate(labels, np.eye(3)[labels] * 0.97 + 0.01, [None] * 90, 0.5)
    one = binomtest(30, 30).proportion_ci(method="wilson").low
    # The classes' hits are independent: their distances add as squares do.
    assert found["sensitivity"].value == 1
    assert found["sensitivity"].high == 1
    assert found["sensitivity"].low == pytest.approx(1 - (1 - one) / np.sqrt(3))
    # A miss counts for two specificities: as if all three were one.
    rejected = binomtest(60, 60).proportion_ci(method="wilson").low
    assert found["specificity"].low == pytest.approx(rejected)
    alike = estimate(labels, np.eye(3)[labels] * 0.97 + 0.01, list(np.arange(90) // 6), 0.5)
    assert alike["sensitivity"].low < found["sensitivity"].low


def test_macro_rates_cover() -> None:
    """300 samples of 45 patients with one to three images: the standard error of 95 % is 1.3 %."""
    random, covered = np.random.default_rng(5), {"sensitivity": 0, "specificity": 0}
    for _ in range(300):
        sizes = random.integers(1, 4, 45)
        labels = np.repeat(np.arange(45) % 3, sizes)
        is_hit = np.repeat(random.random(45), sizes) < 0.8  # all images of a patient alike
        wrong = (labels + np.repeat(random.integers(1, 3, 45), sizes)) % 3
        decided = np.where(is_hit, labels, wrong)
        units = np.repeat(np.arange(45), sizes).tolist()
        found = estimate(labels, np.eye(3)[decided] * 0.97 + 0.01, units, 0.5)
        for name, truth in (("sensitivity", 0.8), ("specificity", 0.9)):
            covered[name] += found[name].low <= truth <= found[name].high
    assert all(0.92 <= count / 300 <= 1 for count in covered.values()), covered


@pytest.mark.parametrize(
    ("counts", "patients", "expected"),
    [
        ([5, 5], False, None),
        ([1, 9], False, "1 image of class a in val: specificity and AUC"),
        ([9, 1], True, "1 patient of class b in val: sensitivity and AUC"),
        ([8, 9], True, "4 patients of class a in val: specificity and AUC"),
        ([0, 2], False, "0 images of class a, 2 images of class b in val: specificity, sensitivity and AUC"),
        ([9, 9, 2], False, "2 images of class c in val: specificity, sensitivity and AUC"),
    ],
)
def test_too_few_patients_are_a_sentence(counts: list[int], patients: bool, expected: str | None) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    ids = (100 * labels + within // 2).tolist() if patients else [None] * len(labels)  # of two images each
    note = few_units(labels, ids, "abc"[: len(counts)], "val")
    assert note == (None if expected is None else f"{expected} cannot be judged (at least 5 are needed)")
