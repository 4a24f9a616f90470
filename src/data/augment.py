"""Random augmentation of a whole batch at once, on the training device."""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.config import AugmentConfig


def draw_changes(config: AugmentConfig, seeds: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Draw the augmentation of the images of several batches.

    Random numbers are drawn on the CPU, so that a seed gives the same result on every device, and for a whole
    epoch at once, so that a step neither draws nor copies.

    Args:
        config: Strengths.
        seeds: One per batch; the result of a seed does not depend on the other batches.
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
    """Flip, move, and change contrast and brightness of every image; the border is replicated.

    Args:
        images: Float ``(N, C, H, W)`` in [0, 1].
        config: Strengths; if all are off, ``images`` are returned unchanged.
        changes: ``(N, 8)`` from `draw_changes`, on the device of the images.

    Returns:
        Float ``(N, C, H, W)`` in [0, 1].
    """
    if len(images) == 0:  # a rank may have no images of a small batch
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
    grid = torch.matmul(places, moves.reshape(-1, 2, 3).transpose(1, 2))  # equals F.affine_grid
    grid = grid.view(len(images), *images.shape[2:], 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@cache  # F.affine_grid recomputes them for every batch, half of its time
def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Return the normalized coordinates x, y, 1 of all pixels, float32 ``(H x W, 3)``."""
    identity = torch.eye(2, 3)[None]
    grid = F.affine_grid(identity, [1, 1, height, width], align_corners=False).view(-1, 2)
    return F.pad(grid, (0, 1), value=1.0).to(device)


def _relight(images: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    # In place: memory traffic costs as much as the arithmetic.
    return (images - mean).mul_(contrast).add_(mean).add_(brightness).clamp_(0, 1)
