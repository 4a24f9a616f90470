"""The AUC's interval and paired test, against slow independent ones and by simulation."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, t

from src.evaluation.auc import auc, compare, is_better
from src.evaluation.intervals import interval, newcombe

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def both(scores: Floats) -> Floats:
    return np.column_stack([1 - scores, scores])


def kernel(labels: Labels, scores: Floats) -> Floats:
    """1 where a positive (row) is above a negative (column), a half where they tie."""
    positives, negatives = scores[labels == 1][:, None], scores[labels == 0][None, :]
    wins: Floats = (positives > negatives) + 0.5 * (positives == negatives)
    return wins


def slow_delong(labels: Labels, first: Floats, second: Floats) -> tuple[float, float]:
    """DeLong's statistic as in the paper of 1988, by all pairs and 2 x 2 covariances, referred to t."""
    kernels = [kernel(labels, scores) for scores in (first, second)]
    m, n = kernels[0].shape
    v10 = np.array([k.mean(axis=1) for k in kernels])
    v01 = np.array([k.mean(axis=0) for k in kernels])
    covariance = np.cov(v10) / m + np.cov(v01) / n
    contrast = np.array([1, -1])
    difference = kernels[0].mean() - kernels[1].mean()
    z = difference / math.sqrt(contrast @ covariance @ contrast)
    return difference, 2 * t.sf(abs(z), m + n - 1)


def slow_obuchowski(labels: Labels, scores: Floats, patients: Labels) -> float:
    """The clustered variance of one AUC, sum by sum as in the paper of 1997."""
    k = kernel(labels, scores)
    m, n, area = *k.shape, k.mean()
    v10, v01 = k.mean(axis=1), k.mean(axis=0)
    of_positive, of_negative = patients[labels == 1], patients[labels == 0]
    s10 = s01 = s11 = 0.0
    for patient in np.unique(patients):
        x = (v10[of_positive == patient] - area).sum()
        y = (v01[of_negative == patient] - area).sum()
        s10, s01, s11 = s10 + x * x, s01 + y * y, s11 + x * y
    i, i10, i01 = (len(np.unique(p)) for p in (patients, of_positive, of_negative))
    return float(
        i10 / (i10 - 1) * s10 / m**2 + i01 / (i01 - 1) * s01 / n**2 + 2 * i / (i - 1) * s11 / (m * n)
    )


@pytest.mark.parametrize("seed", range(20))
def test_paired_test_equals_the_slow_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(40) % 3 // 2).astype(np.int64)
    digits = 1 if seed % 2 else 8  # one digit makes many ties
    draws: list[Floats] = [random.uniform(0, 1, 40) * 0.7 + 0.2 * labels for _ in range(2)]
    first, second = (draw.round(digits) for draw in draws)
    expected = slow_delong(labels, first, second)
    found = compare(labels, both(first), both(second), [None] * 40)
    assert (found.value, found.p) == pytest.approx(expected, abs=1e-12)
    alone = compare(labels, both(first), both(second), list(range(40)))
    assert alone.p == pytest.approx(found.p, abs=1e-12)  # one image per patient: nothing is clustered


def test_paired_test_known_by_hand() -> None:
    """Two positives, two negatives: V10 = (1, .5) and (1, 1), V01 = (1, .5) and (1, 1)."""
    labels = np.array([0, 0, 1, 1])
    found = compare(
        labels, both(np.array([0.1, 0.6, 0.5, 0.9])), both(np.array([0.1, 0.2, 0.5, 0.9])), [None] * 4
    )
    assert found.value == -0.25
    # The difference's parts are (-.5, 0) on each side: variance .125 / 2 + .125 / 2 = .125.
    assert found.p == pytest.approx(2 * t.sf(0.25 / math.sqrt(0.125), 3))


@pytest.mark.parametrize("seed", range(10))
def test_clusters_equal_the_slow_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    patients = random.integers(0, 12, 60).astype(np.int64)
    labels = (random.uniform(0, 1, 60) < 0.3 + 0.4 * (patients % 2)).astype(np.int64)
    scores = np.round(random.normal(0, 1, 12)[patients] + random.normal(labels, 1), 2)
    constant = both(np.full(60, 0.5))  # its parts do not vary, so only the other's variance is left
    found = compare(labels, both(scores), constant, patients.tolist())
    z = (kernel(labels, scores).mean() - 0.5) / math.sqrt(slow_obuchowski(labels, scores, patients))
    assert found.p == pytest.approx(2 * t.sf(abs(z), 11), abs=1e-12)


def test_equal_and_untestable() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = both(np.array([0.1, 0.6, 0.5, 0.9]))
    assert compare(labels, scores, scores, [None] * 4).p == 1
    one_positive = np.array([0, 0, 0, 1])
    assert math.isnan(compare(one_positive, scores, scores[::-1], [None] * 4).p)
    assert math.isnan(compare(np.zeros(4, dtype=np.int64), scores, scores[::-1], [None] * 4).p)


def simulate(
    random: np.random.Generator, patients: int, images: int, shift: float
) -> tuple[Labels, Floats, list[int]]:
    """Normal scores; a patient has one label and a level that its images share."""
    labels = np.repeat(random.permutation(np.arange(patients) % 2), images).astype(np.int64)
    level = np.repeat(random.normal(0, math.sqrt(0.5), patients), images)
    scores = level + random.normal(0, math.sqrt(0.5), len(labels)) + shift * labels
    return labels, both(1 / (1 + np.exp(-scores))), np.repeat(np.arange(patients), images).tolist()


def true_auc(shift: float) -> float:
    return float(norm.cdf(shift / math.sqrt(2)))


@pytest.mark.parametrize(("shift", "count"), [(0.5, 60), (1.5, 60), (2.5, 60), (2.5, 200)])
def test_delong_interval_covers(shift: float, count: int) -> None:
    """500 samples: the standard error of a coverage of 95 % is 1 %."""
    random = np.random.default_rng(int(10 * shift) + count)
    hits = 0
    for _ in range(500):
        labels, probabilities, _ = simulate(random, count, 1, shift)
        found = interval(labels, probabilities, [None] * count)
        hits += found.low <= true_auc(shift) <= found.high
    assert 0.93 <= hits / 500 <= 0.985


def coverage(shift: float, patients: int, images: int, known: bool, samples: int) -> float:
    random = np.random.default_rng(int(10 * shift) + images)
    hits = 0
    for _ in range(samples):
        labels, probabilities, of = simulate(random, patients, images, shift)
        found = interval(labels, probabilities, of if known else [None] * len(labels))
        hits += found.low <= true_auc(shift) <= found.high
    return hits / samples


def test_patient_interval_covers_where_images_alone_do_not() -> None:
    """150 samples: the standard error of a coverage of 95 % is 1.8 %."""
    assert coverage(1.0, patients=50, images=6, known=True, samples=150) >= 0.90
    # What would be claimed if the images were independent:
    assert coverage(1.0, patients=50, images=6, known=False, samples=150) <= 0.80


@pytest.mark.parametrize("images", [1, 3])
def test_patient_interval_covers_at_a_high_auc(images: int) -> None:
    assert coverage(2.5, patients=60, images=images, known=True, samples=200) >= 0.91


def test_paired_test_keeps_its_level_with_and_without_clusters() -> None:
    """Two models that are equally good: p below 0.05 in about 5 % of 400 samples."""
    random = np.random.default_rng(1)
    below = {1: 0, 4: 0}
    for images in below:
        for _ in range(400):
            labels, _, patients = simulate(random, 60, images, 1.0)
            shared = np.repeat(random.normal(0, 0.5, 60), images)
            one, two = (
                labels
                + shared
                + np.repeat(random.normal(0, 0.5, 60), images)
                + random.normal(0, 0.7, len(labels))
                for _ in range(2)
            )
            below[images] += compare(labels, both(one), both(two), patients).p < 0.05
    assert all(0.015 <= count / 400 <= 0.085 for count in below.values()), below


@pytest.mark.parametrize(
    ("counts", "effect"), [((5, 5), 1.0), ((20, 58), 1.0), ((57, 21), 3.5), ((400, 9), 1.2)]
)
def test_a_larger_auc_never_has_a_lower_end(counts: tuple[int, int], effect: float) -> None:
    """From 0 to 1 in steps of one pair; at every end the equation of Newcombe's method 5 holds."""
    pairs = counts[0] * counts[1]
    areas = np.linspace(0, 1, min(pairs, 600) + 1)
    ends = np.array([newcombe(area, *counts, effect) for area in areas])
    assert (np.diff(ends, axis=0) >= 0).all()
    assert (ends[:, 0] <= areas).all()
    assert (ends[:, 1] >= areas).all()
    assert ends[0, 0] == 0
    assert ends[-1, 1] == 1
    theta, half = ends[1:-1], (sum(counts) / 2 - 1)
    variance = (
        theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / pairs
    )
    distance = (areas[1:-1, None] - theta) / np.sqrt(effect * variance)
    assert np.abs(distance) == pytest.approx(np.full(theta.shape, norm.ppf(0.975)), rel=1e-4)


def test_perfect_and_constant_models_have_an_interval_that_clusters_widen() -> None:
    labels = np.repeat([0, 1], [40, 20])
    pairs_of_images, alone = (np.arange(60) // 2).tolist(), [None] * 60
    for scores, auc_of in ((labels * 0.8 + 0.1, 1.0), (np.full(60, 0.5), 0.5)):
        found = interval(labels, both(scores), alone)
        clustered = interval(labels, both(scores), pairs_of_images)
        assert found.value == pytest.approx(auc_of)
        assert (found.low, found.high) == pytest.approx(newcombe(auc_of, 20, 40))
        # Nothing varies: as if both images of a patient were one.
        assert (clustered.low, clustered.high) == pytest.approx(newcombe(auc_of, 20, 40, 2.0))
        assert (found.note, clustered.note) == ("Newcombe", "Newcombe, by patient")


def test_the_design_effect_is_the_ratio_of_the_two_variances() -> None:
    random = np.random.default_rng(3)
    labels, probabilities, patients = simulate(random, 30, 4, 1.0)
    scores, alone = probabilities[:, 1], np.arange(120)
    effect = slow_obuchowski(labels, scores, np.array(patients)) / slow_obuchowski(labels, scores, alone)
    assert effect > 1.5
    found = interval(labels, probabilities, patients)
    effect *= (t.ppf(0.975, 14) / norm.ppf(0.975)) ** 2  # 15 patients in each class
    expected = newcombe(auc(labels, probabilities), 60, 60, effect)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("counts", "images", "method"),
    [
        ((20, 5), 1, "Newcombe"),
        ((20, 4), 1, "too few positives for an interval"),
        ((4, 20), 1, "too few negatives for an interval"),
        ((40, 8), 2, "too few positives for an interval"),  # of four patients
        ((40, 10), 2, "Newcombe, by patient"),
    ],
)
def test_too_few_of_a_class(counts: tuple[int, int], images: int, method: str) -> None:
    labels = np.repeat([0, 1], counts)
    scores = both(np.random.default_rng(0).uniform(0.1, 0.9, len(labels)))
    found = interval(labels, scores, list(np.arange(len(labels)) // images))
    assert found.value == pytest.approx(auc(labels, scores))
    assert found.note == method
    assert math.isnan(found.low) == math.isnan(found.high) == method.startswith("too few")


def test_three_classes() -> None:
    """The macro mean's interval covers too, and its paired test agrees with resampling."""
    random = np.random.default_rng(4)
    labels = (np.arange(300) % 3).astype(np.int64)
    centers = np.eye(3)[labels] * 1.5
    values = []
    for _ in range(300):
        logits = centers + random.normal(0, 1, (300, 3))
        found = interval(labels, np.exp(logits), [None] * 300)
        values.append((found.value, found.low, found.high))
    truth = np.mean([value for value, _, _ in values])
    assert 0.92 <= np.mean([low <= truth <= high for _, low, high in values]) <= 0.99


@pytest.mark.parametrize("method", ["known", "unknown"])
def test_undefined(method: str) -> None:
    labels = np.zeros(4, dtype=np.int64)
    found = interval(labels, both(np.full(4, 0.5)), [0, 1, 2, 3] if method == "known" else [None] * 4)
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    one_positive = interval(np.array([0, 0, 1]), both(np.array([0.1, 0.6, 0.5])), [None] * 3)
    assert one_positive.value == 0.5
    assert math.isnan(one_positive.high)  # one positive says nothing of how positives vary
    one_patient = interval(np.array([0, 0, 1]), both(np.array([0.1, 0.6, 0.5])), [0, 1, 2])
    assert math.isnan(one_patient.high)


@pytest.mark.parametrize("counts", [(3, 3), (7, 5), (11, 6), (23, 7), (60, 7)])
def test_rounding_is_no_evidence(counts: tuple[int, int]) -> None:
    """A perfect model against a constant one: neither varies, and no p value can be had."""
    labels = np.repeat([0, 1], counts)
    found = compare(labels, both(labels * 0.8 + 0.1), both(np.full(len(labels), 0.5)), [None] * len(labels))
    assert found.value == 0.5
    assert math.isnan(found.p)


@pytest.mark.parametrize(
    ("candidate", "best", "expected"),
    [
        (0.8, None, True),
        (0.8, 0.7, True),
        (0.8, 0.8, False),
        (0.7, 0.8, False),
        (0.0, None, True),
        (-1.0, -2.0, True),
        (0.1, math.nan, True),
        (0.1, math.inf, True),
        (0.1, -math.inf, True),
        (math.nan, None, False),
        (math.nan, 0.5, False),
        (math.nan, math.nan, False),
        (math.inf, None, False),
        (math.inf, 0.5, False),
        (math.inf, math.nan, False),
        (-math.inf, None, False),
        (-math.inf, math.nan, False),
    ],
)
def test_is_better(candidate: float, best: float | None, expected: bool) -> None:
    assert is_better(candidate, best) is expected
