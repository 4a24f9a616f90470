import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from src.errors import ConfigError
from src.evaluation.auc import auc
from src.evaluation.metrics import Scores, choose_threshold, class_rates, confusion, decide, evaluate, softmax

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]

SETTINGS = settings(deadline=None, derandomize=True)  # the first example pays for scikit-learn's import
# A grid of few values makes ties likely; the ends, neighbouring floats and denormals are among them.
SCORES = st.one_of(
    st.sampled_from([0.0, 5e-324, 0.25, 0.5, math.nextafter(0.5, 1), 0.75, math.nextafter(1, 0), 1.0]),
    st.floats(0, 1),
)
SAMPLES = st.lists(st.tuples(st.integers(0, 1), SCORES), min_size=2, max_size=20).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


def binary(pairs: list[tuple[int, float]]) -> tuple[Labels, Floats]:
    scores = np.array([score for _, score in pairs])
    return np.array([label for label, _ in pairs], dtype=np.int64), np.column_stack([1 - scores, scores])


def rates(labels: Labels, decisions: Labels) -> tuple[float, float]:
    positive, negative = decisions[labels == 1], decisions[labels == 0]
    return float((positive == 1).sum() / len(positive)), float((negative == 0).sum() / len(negative))


def pair_counting_auc(labels: Labels, scores: Floats) -> float:
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[labels == 1] for n in scores[labels == 0]
    ]
    return sum(wins) / len(wins)


def every_outcome(labels: Labels, probabilities: Floats) -> list[tuple[float, float]]:
    """Sensitivity and specificity of every way to cut the scores, tried one by one."""
    cuts = [*probabilities[:, 1], 2.0]
    return [rates(labels, (probabilities[:, 1] >= cut).astype(np.int64)) for cut in cuts]


@SETTINGS
@given(SAMPLES)
def test_binary_auc_equals_counting_the_pairs(pairs: list[tuple[int, float]]) -> None:
    labels, probabilities = binary(pairs)
    assert auc(labels, probabilities) == pytest.approx(
        pair_counting_auc(labels, probabilities[:, 1]), abs=1e-12
    )


def test_auc_counts_a_tie_as_one_half_and_takes_index_one_as_positive() -> None:
    labels, probabilities = binary([(0, 0.2), (0, 0.6), (1, 0.6), (1, 0.9)])
    assert auc(labels, probabilities) == 3.5 / 4
    assert auc(labels, probabilities[:, ::-1]) == 0.5 / 4


def test_auc_of_three_classes_is_the_plain_mean_of_one_against_the_rest() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    probabilities = generator.dirichlet([1, 1, 1], 40).round(1)  # ties, and rows that do not sum to 1
    areas = [pair_counting_auc((labels == c).astype(np.int64), probabilities[:, c]) for c in range(3)]
    assert auc(labels, probabilities) == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_auc_is_nan_where_a_probability_is_not_finite(bad: float) -> None:
    labels, probabilities = binary([(0, 0.2), (1, 0.6)])
    probabilities[0, 0] = bad
    assert math.isnan(auc(labels, probabilities))


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 0, 0, 0], []])
def test_auc_is_nan_where_a_class_is_missing(labels: list[int]) -> None:
    array = np.array(labels, dtype=np.int64)
    assert math.isnan(auc(array, np.full((len(labels), 2), 0.5)))
    assert math.isnan(auc(array, np.full((len(labels), 3), 1 / 3)))


def test_decide_takes_class_one_at_the_threshold_and_the_argmax_of_many() -> None:
    _, probabilities = binary([(0, 0.29), (0, 0.3), (0, 0.31)])
    assert decide(probabilities, 0.3).tolist() == [0, 1, 1]
    many = np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])
    assert decide(many, 0.99).tolist() == [1, 0]
    assert decide(many, 0.5).dtype == np.int64


@SETTINGS
@given(SAMPLES)
def test_youden_reaches_the_best_index_there_is(pairs: list[tuple[int, float]]) -> None:
    labels, probabilities = binary(pairs)
    chosen = rates(labels, decide(probabilities, choose_threshold("youden", labels, probabilities)))
    best = max(sum(outcome) for outcome in every_outcome(labels, probabilities))
    assert sum(chosen) == pytest.approx(best, abs=1e-12)
    equals = [o for o in every_outcome(labels, probabilities) if sum(o) == pytest.approx(best, abs=1e-9)]
    assert chosen[0] == max(sensitivity for sensitivity, _ in equals)


@SETTINGS
@given(SAMPLES, st.sampled_from([0.0, 0.5, 0.75, 0.9, 1.0]), st.booleans())
def test_a_required_rate_is_kept_and_the_other_rate_is_the_best_there_is(
    pairs: list[tuple[int, float]], target: float, mirrored: bool
) -> None:
    labels, probabilities = binary(pairs)
    name, kept, other = ("specificity", 1, 0) if mirrored else ("sensitivity", 0, 1)
    threshold = choose_threshold(f"{name}>={target}", labels, probabilities)
    chosen = rates(labels, decide(probabilities, threshold))
    allowed = [o for o in every_outcome(labels, probabilities) if o[kept] >= target]
    assert chosen[kept] >= target
    assert chosen[other] == max(o[other] for o in allowed)
    assert chosen[kept] == max(o[kept] for o in allowed if o[other] == chosen[other])


def test_thresholds_lie_midway_between_neighbours() -> None:
    labels, probabilities = binary([(0, 0.1), (0, 0.2), (1, 0.4), (0, 0.5), (1, 0.8)])
    assert choose_threshold("youden", labels, probabilities) == pytest.approx(0.3)
    assert choose_threshold("specificity>=1.0", labels, probabilities) == pytest.approx(0.65)
    assert choose_threshold("sensitivity >= 0.90", labels, probabilities) == pytest.approx(0.3)
    assert choose_threshold("sensitivity>=0.5", labels, probabilities) == pytest.approx(0.65)
    assert choose_threshold("specificity>=0", labels, probabilities) == pytest.approx(0.3)
    assert choose_threshold("sensitivity>=1", *binary([(1, 0.2), (0, 0.9)])) == pytest.approx(0.1)
    assert choose_threshold("specificity>=1", *binary([(1, 0.2), (0, 0.6)])) == pytest.approx(0.8)
    noisy = probabilities + 0.01 * np.array([[-1, 1], [1, -1], [-1, 1], [1, -1], [1, -1]])
    chosen = choose_threshold("youden", labels, probabilities)
    assert decide(noisy, chosen).tolist() == decide(probabilities, chosen).tolist()


def test_exactly_the_required_sensitivity_is_enough() -> None:
    scores = np.linspace(0.05, 0.95, 10)
    labels = np.ones(10, dtype=np.int64)
    pairs = [*zip(labels.tolist(), scores.tolist(), strict=True), (0, 0.1)]
    threshold = choose_threshold("sensitivity>=0.90", *binary(pairs))
    assert 0.1 < threshold < scores[1]  # 9 of 10 positives: 0.9, with the one negative left out


def test_nothing_is_called_positive_where_even_a_score_of_one_is_a_negative() -> None:
    labels, probabilities = binary([(0, 1.0), (1, 1.0)])
    threshold = choose_threshold("specificity>=0.90", labels, probabilities)
    assert decide(probabilities, threshold).tolist() == [0, 0]
    assert np.float32(threshold) > 1


@pytest.mark.parametrize("policy", ["youden", "sensitivity>=0.90", "specificity>=0.90"])
def test_one_half_where_there_is_nothing_to_choose_by(policy: str) -> None:
    labels, probabilities = binary([(0, math.nan), (1, 0.9)])
    assert choose_threshold(policy, labels, probabilities) == 0.5
    assert choose_threshold(policy, *binary([(1, 0.1), (1, 0.9)])) == 0.5
    assert choose_threshold(policy, np.empty(0, dtype=np.int64), np.empty((0, 2))) == 0.5


def test_a_number_is_itself_whatever_the_classes() -> None:
    assert choose_threshold(0.37, np.array([0, 1, 2]), np.eye(3)) == 0.37


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        ("yuden", "did you mean 'youden'"),
        ("sensitivity>0.9", "did you mean 'sensitivity>=0.90'"),
        ("specificity>=1.5", "specificity>=0.90"),
        ("", "youden, sensitivity>=0.90, specificity>=0.90"),
    ],
)
def test_an_unknown_policy_is_refused_with_the_known_ones(policy: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"^evaluation\.threshold") as caught:
        choose_threshold(policy, *binary([(0, 0.1), (1, 0.9)]))
    assert hint in str(caught.value)


def test_a_policy_needs_two_classes() -> None:
    with pytest.raises(ConfigError, match="needs two classes and the data has 3"):
        choose_threshold("youden", np.array([0, 1, 2]), np.eye(3))


def test_evaluate_two_classes_by_hand() -> None:
    # Probabilities of class 1: 1/2, 3/4, 1/4, 3/4 for the labels 0, 1, 1, 1.
    logits = torch.tensor([[0, 0], [0, math.log(3)], [math.log(3), 0], [0, math.log(3)]])
    scores = evaluate(np.array([0, 1, 1, 1]), logits, 0.6)
    assert scores.loss == pytest.approx((math.log(2) + 2 * math.log(4 / 3) + math.log(4)) / 4, rel=1e-6)
    assert (scores.acc, scores.sensitivity, scores.specificity) == (0.75, 2 / 3, 1.0)
    assert scores.auc == pytest.approx(2 / 3)
    assert scores.threshold == 0.6
    assert evaluate(np.array([0, 1, 1, 1]), logits, 0.4).specificity == 0.0


def test_evaluate_chooses_the_threshold_of_a_policy_on_the_split() -> None:
    logits = torch.tensor([[0.0, -2.0], [0.0, -1.0], [0.0, -1.5], [0.0, 1.0]])
    scores = evaluate(np.array([0, 0, 1, 1]), logits, "sensitivity>=0.90")
    low, high = softmax(logits)[[0, 2], 1]
    assert scores.threshold == pytest.approx((low + high) / 2)
    assert (scores.sensitivity, scores.specificity, scores.acc) == (1.0, 0.5, 0.75)


def test_evaluate_three_classes_averages_over_the_classes() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    decided = [0, 0, 1, 1, 2, 2]
    logits = 4 * torch.nn.functional.one_hot(torch.tensor(decided), 3).float()
    scores = evaluate(labels, logits, 0.5)
    assert scores.acc == pytest.approx(4 / 6)
    assert scores.sensitivity == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores.specificity == pytest.approx((3 / 3 + 3 / 4 + 4 / 5) / 3)


def test_confusion_has_true_rows_and_decided_columns() -> None:
    counts = confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    sensitivity, specificity = class_rates(counts)
    assert sensitivity.tolist() == [0.5, 1.0, 1.0]
    assert specificity.tolist() == [1.0, 1.0, 2 / 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("classes", [2, 3])
def test_logits_that_are_not_finite_give_nan_scores(bad: float, classes: int) -> None:
    logits = torch.zeros(classes, classes)
    logits[0, 0] = bad
    policy = "youden" if classes == 2 else 0.5
    scores = evaluate(np.arange(classes), logits, policy)
    assert all(math.isnan(value) for value in scores.named("val").values())
    assert 0 < scores.threshold <= 0.5


def test_an_empty_split_and_a_missing_class_give_nan() -> None:
    empty = evaluate(np.empty(0, dtype=np.int64), torch.empty(0, 2), "youden")
    assert all(math.isnan(value) for value in empty.named("val").values())
    one = evaluate(np.array([1, 1]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0.5)
    assert one.acc == one.sensitivity == 1.0
    assert math.isnan(one.auc)
    assert math.isnan(one.specificity)


def test_softmax_keeps_differences_that_float32_would_round_away() -> None:
    probabilities = softmax(torch.tensor([[0.0, 20.0], [0.0, 20.5]], requires_grad=True))
    assert probabilities.dtype == np.float64
    assert probabilities[0, 1] == pytest.approx(1 / (1 + math.exp(-20)), abs=1e-16)
    assert probabilities[0, 1] < probabilities[1, 1] < 1
    assert evaluate(np.array([0, 1]), torch.tensor([[0.0, 20.0], [0.0, 20.5]]), 0.5).auc == 1.0


def test_logits_of_half_precision_are_scored_in_float64() -> None:
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.bfloat16)
    assert evaluate(np.array([1, 0]), logits, 0.5).loss == pytest.approx(math.log1p(math.exp(-1)), abs=1e-12)


def test_scores_are_named_by_split_without_the_threshold() -> None:
    assert Scores(0.1, 0.2, 0.3, 0.4, 0.5, threshold=0.6).named("val") == {
        "val_loss": 0.1,
        "val_acc": 0.2,
        "val_auc": 0.3,
        "val_sensitivity": 0.4,
        "val_specificity": 0.5,
    }
