"""Scores one split with the one forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from src.data.batches import in_order
from src.data.dataset import Dataset, Split
from src.models.forward import predict_logits
from src.models.spec import InputSpec
from src.training.metrics import Scores, evaluate, softmax


@dataclass(frozen=True)
class Network:
    """A model, what it expects, where it computes, and in which mixed precision it trains."""

    model: nn.Module
    spec: InputSpec
    device: torch.device
    autocast: torch.dtype | None


@dataclass(frozen=True)
class SplitScores:
    """One split's probabilities, float64 ``(N, K)`` in the order of ``split``, and their scores."""

    split: Split
    probabilities: NDArray[np.float64]
    scores: Scores


def score_split(
    network: Network, dataset: Dataset, name: str, threshold: float | str, batch_size: int
) -> SplitScores:
    """Runs the model over a split and scores it.

    Args:
        network: What to run.
        dataset: Where the split is.
        name: ``train``, ``val`` or ``test``.
        threshold: The operating threshold, or the rule that chooses it on this very split.
        batch_size: Images per forward pass; it does not change the scores.
    """
    split = dataset.splits[name]
    batches = (dataset.batch(name, positions) for positions in in_order(np.arange(len(split)), batch_size))
    # In float32 whatever training does: scores and threshold must hold for the model as it is served.
    logits = predict_logits(network.model, network.spec, batches, device=network.device)
    return SplitScores(split, softmax(logits), evaluate(split.labels, logits, threshold))
