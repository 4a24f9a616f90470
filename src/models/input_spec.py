"""The input of a model: size, channels and normalization."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError


@dataclass(frozen=True)
class InputSpec:
    """Size, channels and normalization of the images that a model expects.

    Attributes:
        channels: Number of channels.
        size: Height and width in pixels.
        mean: Mean per channel of pixels scaled to [0, 1].
        std: Standard deviation per channel of pixels scaled to [0, 1].

    Raises:
        ModelError: Mean or std do not have one value per channel, or a std is not positive.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels or not all(s > 0 for s in self.std):
            raise ModelError(
                f"An input of {self.channels} channel(s) needs as many means and positive standard "
                f"deviations, not mean {self.mean} and std {self.std}."
            )

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize floating-point pixels (N, C, H, W) in [0, 1] by the mean and std of each channel."""
        return standardize(pixels, *self.constants(pixels.dtype, pixels.device))

    def constants(self, dtype: torch.dtype, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and std as tensors of shape (1, C, 1, 1), which must not be changed."""
        return _constants(self.mean, self.std, dtype, device)

    def to_dict(self) -> dict[str, int | list[float]]:
        """Return plain values for a checkpoint."""
        return {**vars(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "InputSpec":
        """Return the spec of the values of ``to_dict``.

        Raises:
            ModelError: A key is missing or a value is of the wrong type.
        """
        try:
            mean, std = (tuple(float(v) for v in d[key]) for key in ("mean", "std"))
            return cls(channels=int(d["channels"]), size=int(d["size"]), mean=mean, std=std)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The description of the model's input is damaged ({error!r}): it needs the keys "
                "channels, size, mean and std; use a checkpoint written by this project."
            ) from error


@cache  # copied to a device once, because every copy waits for the device
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(mode=False):  # the tensors are used in training, too
        first, second = (
            torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1) for values in (mean, std)
        )
    return first, second


def standardize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``(pixels - mean) / std``: the formula shared by training, prediction and serving."""
    return (pixels - mean) / std


def unit_range(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to float32 in [0, 1]; shape, device and memory format stay."""
    return pixels.to(torch.float32) / 255
