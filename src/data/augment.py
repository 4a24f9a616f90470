"""Random changes of a whole batch at once, on the device that trains."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from src.utils.config import AugmentConfig


def augment(
    images: Tensor, config: AugmentConfig, seed: int, *, of: tuple[int, Tensor] | None = None
) -> Tensor:
    """Mirrors, moves and re-lights every image of a batch by random amounts of its own.

    The random numbers are drawn on the CPU, so that a seed means the same on every device. Places
    that a move brings in from outside repeat the border.

    Args:
        images: Float ``(N, C, H, W)`` in [0, 1].
        config: Strengths; all zero and no flips returns ``images`` as they are.
        seed: Same seed, same batch.
        of: Where ``images`` are a part of a batch: its length, and the place of each, int64 ``(N,)``. Each
            is changed as it would be there.

    Returns:
        Float ``(N, C, H, W)`` in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    if len(images) == 0:  # of a small batch a process may have none
        return images
    length, places = (len(images), slice(None)) if of is None else of
    draws = torch.rand(8, length, generator=generator)[:, places]
    images = _move(images, config, draws)
    return _relight(images, config, draws[6:])


def _signed(draw: Tensor) -> Tensor:
    return draw * 2 - 1


def _move(images: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Flip, rotation, scale and translation as one affine map, so pixels are interpolated once."""
    strengths = (config.rotation, config.scale, config.translation)
    if not any((config.horizontal_flip, config.vertical_flip, *strengths)):
        return images
    angle = _signed(draws[0]) * math.radians(config.rotation)
    zoom = 1 + _signed(draws[1]) * config.scale
    flip_x = torch.where(draws[4] < 0.5, -1.0, 1.0) if config.horizontal_flip else torch.ones_like(zoom)
    flip_y = torch.where(draws[5] < 0.5, -1.0, 1.0) if config.vertical_flip else torch.ones_like(zoom)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    # Normalised coordinates run from -1 to 1, so a share of the side is twice that share.
    shift_x, shift_y = (2 * config.translation * _signed(draws[i]) for i in (2, 3))
    rows = [
        torch.stack([cos * flip_x, -sin * flip_y, shift_x], 1),
        torch.stack([sin * flip_x, cos * flip_y, shift_y], 1),
    ]
    theta = torch.stack(rows, 1).to(images.device, images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _relight(images: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    if not (config.brightness or config.contrast):
        return images
    shape = (2, len(images), 1, 1, 1)
    contrast, brightness = _signed(draws).to(images.device, images.dtype).view(shape)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    # In place: each step over a batch of float images costs as much as the arithmetic in it.
    changed = (images - mean).mul_(1 + contrast * config.contrast)
    return changed.add_(mean).add_(brightness * config.brightness).clamp_(0, 1)
