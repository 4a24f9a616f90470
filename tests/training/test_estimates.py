"""Intervals against SciPy's, and against what is known of clusters."""

import numpy as np
import pytest
from scipy.stats import binomtest

from src.training.estimates import by_patient, estimate, share


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (3, 10), (90, 100), (1, 1)])
def test_a_share_of_independent_samples_has_wilsons_interval(hits: int, count: int) -> None:
    found = share(np.arange(count) < hits, np.arange(count))
    wilson = binomtest(hits, count).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / count, wilson.low, wilson.high))


@pytest.mark.parametrize("hits", [8, 0])
def test_copies_of_a_sample_say_no_more_than_it(hits: int) -> None:
    once = np.arange(20) < hits
    alone, copied = share(once, np.arange(20)), share(np.repeat(once, 5), np.repeat(np.arange(20), 5))
    # Between 20 units the variance is estimated with 19 degrees of freedom.
    assert copied.value == alone.value
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.03)


def test_unrelated_samples_of_a_unit_are_never_more_than_there_are() -> None:
    hits = np.tile([True, False], 50)
    paired, alone = share(hits, np.repeat(np.arange(50), 2)), share(hits, np.arange(100))
    assert (paired.low, paired.high) == pytest.approx((alone.low, alone.high))


def test_intervals_cover_as_often_as_they_say() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        rates = random.beta(8, 2, 40)  # patients differ: their images are alike
        hits = random.random((40, 5)) < rates[:, None]
        found = share(hits.ravel(), np.repeat(np.arange(40), 5))
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
