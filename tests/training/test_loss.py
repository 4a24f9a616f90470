"""The loss and what is mixed into it, against sums by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.training.pipeline import make_mixup
from src.training.step import Loss, make_loss
from src.utils.config import TrainingConfig
from src.utils.runtime import seed_everything

CPU = torch.device("cpu")
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def by_hand(logits: Tensor, shares: Tensor, weights: Tensor, smoothing: float) -> tuple[float, float]:
    """The summed loss and the total weight, image by image and class by class."""
    total = weight = 0.0
    for row, share in zip(logits.double().numpy(), shares.double().numpy(), strict=True):
        logs = row - np.log(np.exp(row).sum())
        smooth = share * (1 - smoothing) + smoothing / len(row)
        total -= float((smooth * logs * weights.numpy()).sum())
        weight += float((share * weights.numpy()).sum())
    return total, weight


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("soft", [False, True])
def test_sum_and_weight_equal_those_by_hand(smoothing: float, weights: Tensor | None, soft: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    shares = torch.rand(7, 3).softmax(dim=1) if soft else F.one_hot(labels, 3).float()
    loss, targets = Loss(weights, smoothing), shares if soft else labels
    expected = by_hand(logits, shares, torch.ones(3) if weights is None else weights, smoothing)
    assert (float(loss(logits, targets)), float(loss.total_weight(targets))) == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_passes_add_up_to_torchs_mean(smoothing: float, weights: Tensor | None) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    loss = Loss(weights, smoothing)
    total = loss(logits[:5], labels[:5]) + loss(logits[5:], labels[5:])
    want = F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(total / loss.total_weight(labels), want)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_shares_of_one_give_the_loss_of_indices(weights: Tensor | None) -> None:
    """torch's own mean does so without class weights only."""
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    shares, loss = F.one_hot(labels, 3).float(), Loss(weights)
    means = [loss(logits, targets) / loss.total_weight(targets) for targets in (labels, shares)]
    torch.testing.assert_close(means[0], means[1])
    is_torchs = torch.allclose(F.cross_entropy(logits, shares, weight=weights), means[1])
    assert is_torchs == (weights is None)


def test_balanced_weights_give_every_class_the_same_share() -> None:
    labels = np.array([0] * 6 + [1] * 2 + [2])
    weights = make_loss(TrainingConfig(class_weights="balanced"), labels, CPU).class_weights
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([9 / 18, 9 / 6, 9 / 3]))
    assert float(weights[labels].sum()) == len(labels)  # so a mean over images stays one
    assert make_loss(TrainingConfig(), labels, CPU) == Loss(None, 0.0)


def test_images_and_labels_are_mixed_alike() -> None:
    mixup = make_mixup(0.4, num_classes=3)
    assert mixup is not None
    images, labels = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 2])
    seed_everything(5)
    mixed, shares = mixup(images, labels)
    lam = float(shares[0, 0])  # what the first image kept; the rest is its neighbour's
    assert 0 < lam < 1
    neighbours = [3, 0, 1, 2]
    for i, other in enumerate(neighbours):
        torch.testing.assert_close(mixed[i], lam * images[i] + (1 - lam) * images[other])
        expected = [0.0, 0.0, 0.0]
        expected[labels[i]] += lam
        expected[labels[other]] += 1 - lam
        assert shares[i].tolist() == pytest.approx(expected)
    seed_everything(5)
    again, _ = mixup(images, labels)
    assert torch.equal(again, mixed)
    seed_everything(6)
    assert not torch.equal(mixup(images, labels)[0], mixed)


def test_no_alpha_no_mixing() -> None:
    assert make_mixup(0.0, num_classes=2) is None
