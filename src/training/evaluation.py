"""Scores one split with the one forward pass."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.dataset import Split
from ..data.loading import BatchLoader, sequential_batches
from ..models.forward import predict_logits
from ..models.spec import InputSpec
from ..utils.processes import ALONE, Processes
from .metrics import Scores, evaluate, softmax


@dataclass(frozen=True)
class Network:
    """A model, what it expects, and how it computes.

    Attributes:
        model: Here; each of several processes has one of its own.
        spec: The input that it expects.
        device: Where it is.
        autocast: The mixed precision it trains in, None for float32.
        processes: Who computes along.
    """

    model: nn.Module
    spec: InputSpec
    device: torch.device
    autocast: torch.dtype | None
    processes: Processes = ALONE


@dataclass(frozen=True)
class SplitScores:
    """One split's probabilities, float64 ``(N, K)`` in the order of ``split``, and their scores."""

    split: Split
    probabilities: NDArray[np.float64]
    scores: Scores


def score_split(
    network: Network, loader: BatchLoader, name: str, threshold: float | str, batch_size: int
) -> SplitScores:
    """Runs the model over a split and scores it; each of several processes runs it over its share.

    Every image counts once, and all get the same scores from what they gather.

    Args:
        network: What to run.
        loader: Loads the images.
        name: ``train``, ``val`` or ``test``.
        threshold: The operating threshold, or the rule that chooses it on this very split.
        batch_size: Images per forward pass; it does not change the scores.
    """
    dataset, split = loader.dataset, loader.dataset.splits[name]
    positions = np.arange(len(split))[network.processes.share(len(split))]
    with closing(loader.load(name, sequential_batches(positions, batch_size))) as images:
        batches = _in_step(images, network.processes, len(split), batch_size)
        if len(positions):
            # In float32 whatever training does: scores and threshold must hold for the model as it is served.
            logits = predict_logits(network.model, network.spec, batches, device=network.device)
        else:  # more processes than images: it asks to stop with the others, and has nothing to add
            logits = torch.zeros(len(list(batches)), len(dataset.classes))
    logits = network.processes.joined(logits, len(split))
    return SplitScores(split, softmax(logits), evaluate(split.labels, logits, threshold))


def _in_step(images: Iterator[Tensor], processes: Processes, count: int, batch_size: int) -> Iterator[Tensor]:
    """The batches of this process; where it has one batch less than others, it asks as often to stop."""
    for _ in range(-(-count // processes.count) // batch_size + 1):
        processes.check_stop()
        yield from islice(images, 1)
