"""Batches are read ahead: the same images, bounded memory, and every error where it belongs."""

import os
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data.batches import BATCHES_AHEAD, BatchLoader, load_batches, read_ahead, sequential_batches
from src.data.dataset import Dataset, load_dataset
from src.errors import DataError
from src.utils.config import DataConfig
from src.utils.runtime import Stopped, stop_signals
from tests.images import write_folder

CPU = torch.device("cpu")


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    """Two modalities of 24 training and 8 validation images."""
    for modality in ("A", "P"):
        write_folder(folder / "d", counts={"train": 24, "val": 8}, modality=modality)
    return load_dataset(DataConfig(root_dir=str(folder / "d"), modalities=("A", "P")), folder / "c")


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_come_in_order_and_whole(dataset: Dataset, split: str) -> None:
    order = sequential_batches(np.random.default_rng(0).permutation(len(dataset.splits[split])), 5)
    loader = BatchLoader(dataset, CPU, cache_share=0.5)
    assert loader.resident == ()  # only a GPU has memory of its own
    found = list(loader.load(split, order))
    assert [len(batch) for batch in found] == [len(batch) for batch in order]
    for batch, positions in zip(found, order, strict=True):
        assert batch.shape[1:] == (2, 16, 16)
        assert torch.equal(batch, dataset.batch(split, positions))
    assert reading_threads() == []


def test_no_batches(dataset: Dataset) -> None:
    assert list(load_batches(dataset.images("val"), [], CPU)) == []


def test_no_more_is_read_than_stated() -> None:
    started: list[int] = []

    def read(number: int) -> int:
        started.append(number)
        return number

    for used, number in enumerate(read_ahead(read, range(40), threads=3)):
        time.sleep(0.01)  # the readers have time for more
        assert number == used
        assert len(started) <= used + 1 + BATCHES_AHEAD
    assert sorted(started) == list(range(40))


def test_reading_goes_on_while_a_batch_is_used() -> None:
    third = threading.Event()

    def read(number: int) -> int:
        if number == 2:
            third.set()
        return number

    with closing(read_ahead(read, range(9))) as batches:
        assert next(batches) == 0
        assert third.wait(10)  # without the caller asking


def test_an_error_is_raised_at_its_batch_and_ends_the_threads() -> None:
    def read(number: int) -> int:
        if number == 3:
            raise ValueError("batch 3")
        return number

    batches = read_ahead(read, range(20), threads=2)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="batch 3"):
        next(batches)
    assert reading_threads() == []


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_signal_ends_the_wait_and_the_threads(is_busy: bool) -> None:
    """Whether it comes while a batch is awaited or while one is used."""
    started = threading.Event()

    def read(number: int) -> int:
        started.set()
        time.sleep(0.0 if is_busy else 0.3)
        return number

    def stop() -> None:
        started.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), 15)

    def use() -> None:
        with closing(read_ahead(read, range(10_000))) as batches:
            for _ in batches:
                time.sleep(0.01)

    threading.Thread(target=stop).start()
    with stop_signals(), pytest.raises(Stopped):
        use()
    assert reading_threads() == []


def test_a_file_that_was_cut_off_is_an_error_and_is_rebuilt(dataset: Dataset, folder: Path) -> None:
    (path,) = (folder / "c/packs").glob("*.npy")  # both modalities show the same pixels
    whole = path.stat().st_size
    wanted = {split: dataset.batch(split, np.arange(8)).clone() for split in dataset.splits}
    os.truncate(path, whole // 2)
    order = sequential_batches(np.arange(24), 4)
    with pytest.raises(DataError, match=rf"{path.name}: .*was cut off while it was in use.*--resume"):
        list(load_batches(dataset.images("train"), order, CPU))
    assert reading_threads() == []
    again = load_dataset(DataConfig(root_dir=str(folder / "d"), modalities=("A", "P")), folder / "c")
    assert path.stat().st_size == whole
    for split, images in wanted.items():
        assert torch.equal(again.batch(split, np.arange(8)), images)


def test_a_failing_disk_is_an_error(dataset: Dataset) -> None:
    broken = dataset.arrays[0].file
    os.dup2(os.open("/proc/self/mem", os.O_RDONLY), broken.fileno())  # reading at 0 fails with EIO
    with pytest.raises(DataError, match=r"cannot be read \(Input/output error\); check the disk"):
        dataset.batch("train", np.arange(4))
