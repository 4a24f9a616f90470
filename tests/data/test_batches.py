"""Order of images and their augmentation."""

import numpy as np
import pytest
import torch

from src.data.augment import augment, draw_changes
from src.data.batches import training_batches
from src.utils.config import AugmentConfig

OFF = {"horizontal_flip": False, "rotation": 0, "translation": 0, "scale": 0, "brightness": 0, "contrast": 0}


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4, 2]), (9, [4, 5]), (8, [4, 4]), (3, [3])])
def test_every_image_once_and_no_batch_of_one(count: int, sizes: list[int]) -> None:
    batches = training_batches(count, 4, seed=0, epoch=1)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(count))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(i) for batch in training_batches(50, 7, seed=seed, epoch=epoch) for i in batch]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*pair)) for pair in [(1, 2), (2, 1), (1, 3), (0, 2)]}) == 4


def images() -> torch.Tensor:
    return torch.rand(6, 2, 12, 12, generator=torch.Generator().manual_seed(0))


def changed(batch: torch.Tensor, config: AugmentConfig, seed: int) -> torch.Tensor:
    return augment(batch, config, draw_changes(config, [seed], [len(batch)]))


def test_a_batch_is_changed_alike_whatever_the_others_are() -> None:
    config = AugmentConfig(vertical_flip=True)
    alone = draw_changes(config, [5], [3])
    assert torch.equal(draw_changes(config, [4, 5, 6], [9, 3, 4])[9:12], alone)
    assert not torch.equal(draw_changes(config, [4], [3]), alone)


def test_same_seed_same_batch() -> None:
    config = AugmentConfig()
    assert torch.equal(changed(images(), config, 5), changed(images(), config, 5))
    assert not torch.equal(changed(images(), config, 5), changed(images(), config, 6))


def test_off_is_off() -> None:
    assert torch.equal(changed(images(), AugmentConfig.model_validate(OFF), 1), images())


def test_a_flip_mirrors_some_images_exactly() -> None:
    out = changed(images(), AugmentConfig.model_validate(OFF | {"horizontal_flip": True}), 3)
    mirrored = [torch.allclose(o, i.flip(-1), atol=1e-5) for o, i in zip(out, images(), strict=True)]
    unchanged = [torch.allclose(o, i, atol=1e-5) for o, i in zip(out, images(), strict=True)]
    assert all(a != b for a, b in zip(mirrored, unchanged, strict=True))
    assert any(mirrored)
    assert any(unchanged)


@pytest.mark.parametrize("seed", range(4))
def test_flips_and_rotation_together_keep_distances(seed: int) -> None:
    """Two points of every image stay as far from each other as they were: no shear, no stretch."""
    points = torch.zeros(8, 2, 41, 41)
    points[:, 0, 20, 28] = points[:, 1, 12, 20] = 1
    config = OFF | {"horizontal_flip": True, "vertical_flip": True, "rotation": 90}
    moved = changed(points, AugmentConfig.model_validate(config), seed)
    axis = torch.arange(41.0)
    x, y = ((moved.sum(dim) * axis).sum(-1) / moved.sum((2, 3)) for dim in (2, 3))
    distances = ((x[:, 0] - x[:, 1]) ** 2 + (y[:, 0] - y[:, 1]) ** 2).sqrt()
    assert distances.tolist() == pytest.approx([8 * 2**0.5] * 8, abs=0.5)


def test_translation_moves_by_a_share_of_the_side() -> None:
    square = torch.zeros(64, 1, 20, 20)
    square[:, :, 10, 10] = 1
    config = AugmentConfig.model_validate(OFF | {"translation": 0.2})
    moved = changed(square, config, 0)
    mass = moved.sum((1, 2, 3))
    x = (moved.sum((1, 2)) * torch.arange(20)).sum(1) / mass
    assert float((x - 10).abs().max()) == pytest.approx(4, abs=0.4)  # 0.2 x 20 px


def test_brightness_adds_a_constant_and_stays_in_range() -> None:
    gray = torch.full((8, 1, 4, 4), 0.5)
    out = changed(gray, AugmentConfig.model_validate(OFF | {"brightness": 0.3}), 0)
    assert float(out.amax((1, 2, 3)).sub(out.amin((1, 2, 3))).max()) < 1e-6
    assert 0.2 <= float(out.min()) < 0.45
    assert 0.55 < float(out.max()) <= 0.8
    extreme = changed(images(), AugmentConfig.model_validate(OFF | {"brightness": 1, "contrast": 1}), 0)
    assert float(extreme.min()) >= 0
    assert float(extreme.max()) <= 1
