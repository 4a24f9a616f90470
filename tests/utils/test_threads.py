"""Fewer threads for short work."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from src.models.forward import predict_logits
from src.models.input_spec import InputSpec
from src.training.recorder import Snapshot
from src.utils.background import VALUES_PER_THREAD, at_most_threads


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Record each limit that is set within a test, which starts with three threads."""
    usual, limits, really = torch.get_num_threads(), list[int](), torch.set_num_threads
    really(3)

    def record(count: int) -> None:
        limits.append(count)
        really(count)

    monkeypatch.setattr(torch, "set_num_threads", record)
    yield limits
    really(usual)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (2, 2), (3, 3), (100, 3)])
def test_threads_are_limited_to_what_there_is_and_one(count: int, expected: int) -> None:
    with at_most_threads(count):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("threads")
def test_threads_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), at_most_threads(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_a_snapshot_is_copied_by_one_thread(threads: list[int]) -> None:
    source = torch.rand(300, 300)
    assert torch.equal(Snapshot().take({"weights": source})["weights"], source)
    assert threads == [1, 3]


def test_preparing_images_takes_a_thread_for_each_half_million_values(threads: list[int]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    many = torch.randint(0, 256, (2 * VALUES_PER_THREAD // 1024, 1, 32, 32), dtype=torch.uint8)
    spec = InputSpec(1, 32, (0.5,), (0.2,))
    logits = predict_logits(model, spec, [many[:4], many], device=torch.device("cpu"))
    assert threads == [1, 3, 2, 3]
    assert seen == [3, 3]  # the network itself keeps all
    assert torch.equal(logits[:4], logits[4:8])
