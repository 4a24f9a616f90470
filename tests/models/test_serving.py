from pathlib import Path

import pytest
import torch
from torch.export import Dim

from src.models.build import build_model
from src.models.forward import predict_logits
from src.models.serving import ServingModel
from src.models.spec import InputSpec


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet18", 1, 28),
        ("swin_t", 3, 32),
        ("densenet121", 1, 32),
        pytest.param("resnet50", 3, 64, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 3, 64, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 3, 64, marks=pytest.mark.slow),
    ],
)
def test_exported_model_gives_the_probabilities_of_the_forward_pass(
    tmp_path: Path, name: str, channels: int, size: int
) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, channels=channels, size=size).model
    spec = InputSpec(channels, size, (0.4,) * channels, (0.2,) * channels)
    example = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    program = torch.export.export(ServingModel(model, spec), (example,), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    served = torch.export.load(tmp_path / "model.pt2").module()
    pixels = torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8)
    want = predict_logits(model, spec, [pixels], device=torch.device("cpu")).softmax(dim=1)
    assert want.std(dim=0).max() > 1e-4  # else any constant would pass
    for count in (1, 3):
        got = served(pixels[:count])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want[:count], atol=1e-5, rtol=0)


def test_serving_puts_the_network_into_eval_mode() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    serving = ServingModel(network, InputSpec(1, 2, (0.5,), (0.5,)))
    pixels = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    assert torch.equal(serving(pixels), serving(pixels))
    assert serving(pixels).sum().item() == pytest.approx(1.0)
