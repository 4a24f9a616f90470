"""Small data sets, made on the spot."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.image_array import ImageArray


def make_images(count: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise ``(count, size, size)`` in which class 1 is brighter, not so much that it is never mistaken."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    level = 110 + 30 * labels + random.normal(0, 20, count)
    images = random.normal(level[:, None, None], 30, (count, size, size))
    return images.clip(0, 255).astype(np.uint8), labels


def write_npz(path: Path, *, size: int = 16, train: int = 32, val: int = 16, test: int = 16) -> Path:
    """A small file in MedMNIST's format."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for seed, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        if count:
            images, labels = make_images(count, size, seed)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels.astype(np.uint8)[:, None]}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_folder(root: Path, *, counts: dict[str, int], modality: str = "A", size: int = 16) -> Path:
    """PNG files ``root/{modality}/{split}/{neg,pos}/*.png``; the split "" leaves that level out."""
    for seed, (split, count) in enumerate(counts.items()):
        images, labels = make_images(count, size, seed)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / modality / split / ("neg", "pos")[label] / f"p{number // 2:03d}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


def pixels_of(array: ImageArray) -> NDArray[np.uint8]:
    """All images of a file."""
    return array.read(np.arange(array.shape[0]))
