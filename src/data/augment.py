"""Random changes of a whole batch at once, on the device that trains."""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.config import AugmentConfig


def draw_changes(config: AugmentConfig, seeds: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Draw how the images of several batches are changed.

    The random numbers are drawn on the CPU, so that a seed means the same on every device, and for a whole
    epoch at once, so that a step draws and copies nothing.

    Args:
        config: Strengths.
        seeds: One per batch; the same seed gives the same changes, whatever the other batches are.
        lengths: Images of each batch.

    Returns:
        float32 ``(N, 8)`` on the CPU, N images of all batches: the affine map ``(2, 3)`` from output to input
        in normalized coordinates, the contrast factor, and the brightness that is added.
    """
    draws = torch.cat(
        [
            torch.rand(8, length, generator=torch.Generator().manual_seed(seed))
            for seed, length in zip(seeds, lengths, strict=True)
        ],
        dim=1,
    )
    angle = _signed(draws[0]) * math.radians(config.rotation)
    zoom = 1 + _signed(draws[1]) * config.scale
    flip_x = torch.where(draws[4] < 0.5, -1.0, 1.0) if config.horizontal_flip else torch.ones_like(zoom)
    flip_y = torch.where(draws[5] < 0.5, -1.0, 1.0) if config.vertical_flip else torch.ones_like(zoom)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    # Normalized coordinates run from -1 to 1, so a share of the side is twice that share.
    shift_x, shift_y = (2 * config.translation * _signed(draws[i]) for i in (2, 3))
    moves = [cos * flip_x, -sin * flip_y, shift_x, sin * flip_x, cos * flip_y, shift_y]
    contrast, brightness = _signed(draws[6:])
    return torch.stack([*moves, 1 + contrast * config.contrast, brightness * config.brightness], 1)


def augment(images: Tensor, config: AugmentConfig, changes: Tensor) -> Tensor:
    """Mirror, move and re-light every image of a batch; places moved in from outside repeat the border.

    Args:
        images: Float ``(N, C, H, W)`` in [0, 1].
        config: Which changes there are; without any, ``images`` are returned as they are.
        changes: Of each image, ``(N, 8)`` as `draw_changes` gives them, on the device of the images.

    Returns:
        Float ``(N, C, H, W)`` in [0, 1].
    """
    if len(images) == 0:  # of a small batch a process may have none
        return images
    strengths = (config.rotation, config.scale, config.translation)
    if any((config.horizontal_flip, config.vertical_flip, *strengths)):
        images = _move(images, changes[:, :6])
    if config.brightness or config.contrast:
        images = _relight(images, *changes[:, 6:].T.reshape(2, -1, 1, 1, 1))
    return images


def _signed(draw: Tensor) -> Tensor:
    return draw * 2 - 1


def _move(images: Tensor, moves: Tensor) -> Tensor:
    """Flip, rotate, scale and translate by one affine map, so that pixels are interpolated once."""
    places = _places(*images.shape[2:], images.device)
    grid = torch.matmul(places, moves.reshape(-1, 2, 3).transpose(1, 2))  # what F.affine_grid gives
    grid = grid.view(len(images), *images.shape[2:], 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@cache  # F.affine_grid makes them for every batch, which takes half of its time
def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Return the normalized coordinates x, y, 1 of all pixels, float32 ``(H x W, 3)``."""
    identity = torch.eye(2, 3)[None]
    grid = F.affine_grid(identity, [1, 1, height, width], align_corners=False).view(-1, 2)
    return F.pad(grid, (0, 1), value=1.0).to(device)


def _relight(images: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    # In place: each step over a batch of float images costs as much as the arithmetic in it.
    return (images - mean).mul_(contrast).add_(mean).add_(brightness).clamp_(0, 1)
