import pytest
import torch
from torch import nn

from src.models.forward import predict_logits
from src.models.input_spec import InputSpec

SPEC = InputSpec(1, 8, (0.5,), (0.25,))
CPU = torch.device("cpu")


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)
    )


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)


def test_logits_are_those_of_the_whole_set_whatever_the_batches() -> None:
    model, x = small_network().train(), pixels(7)
    logits = predict_logits(model, SPEC, x.split([4, 2, 1]), device=CPU)
    model.eval()
    want = model((x.float() / 255 - 0.5) / 0.25).detach()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, want)


def test_flags_and_buffers_stay_as_they_were() -> None:
    model = small_network().train()
    model[1].eval()  # a frozen norm
    before = {k: v.clone() for k, v in model.state_dict().items()}
    predict_logits(model, SPEC, [pixels(3)], device=CPU)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_flags_are_restored_when_the_network_fails() -> None:
    model = small_network().train()
    with pytest.raises(RuntimeError):
        predict_logits(model, SPEC, [torch.zeros(1, 1, 2, 2, dtype=torch.uint8)], device=CPU)
    assert all(m.training for m in model.modules())


def test_autocast_lowers_the_network_and_not_the_result() -> None:
    model, x = small_network(), pixels(5)
    full = predict_logits(model, SPEC, [x], device=CPU)
    lower = predict_logits(model, SPEC, [x], device=CPU, autocast=torch.bfloat16)
    assert lower.dtype == torch.float32
    assert not torch.equal(lower, full)
    torch.testing.assert_close(lower, full, atol=0.05, rtol=0.05)


def test_nothing_to_predict_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        predict_logits(small_network(), SPEC, [], device=CPU)
