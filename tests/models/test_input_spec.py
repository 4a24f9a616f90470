import pytest
import torch

from src.errors import ModelError
from src.models.input_spec import InputSpec

RGB = InputSpec(3, 4, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_channel_is_standardised_with_its_own_values(dtype: torch.dtype) -> None:
    pixels = torch.ones(2, 3, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
    out = RGB.normalize(pixels)
    assert out[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_spec_survives_a_checkpoint(tmp_path: object) -> None:
    path = f"{tmp_path}/spec.pth"
    torch.save({"input": RGB.to_dict()}, path)
    assert InputSpec.from_dict(torch.load(path, weights_only=True)["input"]) == RGB


@pytest.mark.parametrize(
    "damaged", [{}, {**RGB.to_dict(), "mean": None}, {**RGB.to_dict(), "std": [0.5]}, {"channels": "x"}]
)
def test_damaged_description_is_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        InputSpec.from_dict(damaged)


def test_zero_std_is_refused() -> None:
    with pytest.raises(ModelError, match="positive"):
        InputSpec(1, 8, (0.5,), (0.0,))
