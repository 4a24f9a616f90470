"""The decode cache keeps within its bounds."""

import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from src.data.array_cache import ArrayCache, ArrayWriter
from src.data.dataset import load_dataset
from src.errors import DataError
from src.utils.config import DataConfig
from src.utils.io import TEMP_PREFIX
from src.utils.runtime import Stopped
from tests.images import pixels_of, write_folder

IMAGE = 100  # bytes of one image, 1 x 10 x 10
SHAPE = (10, 1, 10, 10)


def put(pack: ArrayWriter, row: int) -> None:
    pack.place(row).write(pack.file.fileno(), bytes([row]) * IMAGE)
    pack.rows[row] = f"pixels {row}"


def make(arrays: ArrayCache, name: str, count: int = 10, age: float = 0) -> None:
    with arrays.new("key", (count, *SHAPE[1:])) as pack:
        for row in range(count):
            put(pack, row)
        pack.keep(name)
    os.utime(arrays.folder / f"{name}.npy", (1e9 - age, 1e9 - age))


def names(arrays: ArrayCache) -> set[str]:
    return {path.stem for path in arrays.folder.glob("*.npy")}


def test_what_was_written_is_read(folder: Path) -> None:
    arrays = ArrayCache(folder, 10_000)
    with arrays.new("key", SHAPE) as pack:
        for row in (0, 1, 2, 6, 9, 4):  # four of ten could not be read
            put(pack, row)
        kept = pack.keep("x")
    found = arrays.find("x")
    assert found is not None
    assert found.shape == kept.shape == SHAPE
    assert [int(image.max()) for image in pixels_of(found)] == [0, 1, 2, 0, 4, 0, 6, 0, 0, 9]
    assert np.array_equal(np.load(folder / "x.npy"), pixels_of(found))
    assert arrays.find("y") is None
    assert names(arrays) == {"x"}


def test_rows_are_taken_from_other_packs(folder: Path) -> None:
    arrays = ArrayCache(folder, 10_000)
    make(arrays, "one")
    (folder / "damaged.rows").write_text("[")
    wanted = {0: "pixels 7", 1: "pixels unknown", 2: "pixels 0"}
    with arrays.new("key", (3, *SHAPE[1:])) as pack:
        assert list(pack.copy_from_others(wanted)) == [0, 2]
        assert list(pack.copy_from_others(wanted)) == []
        assert [int(image.max()) for image in pixels_of(pack.keep("two"))] == [7, 0, 0]
    with arrays.new("key", (1, 1, 5, 20)) as pack:  # images of another shape are of no use
        assert list(pack.copy_from_others({0: "pixels 7"})) == []


def test_what_a_stopped_build_has_saved_is_gone_on_with(folder: Path) -> None:
    arrays = ArrayCache(folder, 10_000)

    def build_half() -> None:
        with arrays.new("key", SHAPE) as pack:
            for row in (0, 1, 5):
                put(pack, row)
            pack.save_rows()
            put(pack, 2)
            raise Stopped(15)

    with pytest.raises(Stopped):
        build_half()
    with arrays.new("key", SHAPE) as pack:
        assert pack.rows == {0: "pixels 0", 1: "pixels 1", 5: "pixels 5"}
        assert [int(image.max()) for image in pixels_of(pack.keep("x"))[:6]] == [0, 1, 2, 0, 0, 5]
    assert {path.name for path in folder.iterdir()} == {".lock", "x.npy", "x.rows"}
    with arrays.new("key", SHAPE) as pack:
        assert pack.rows == {}


def test_after_an_error_nothing_is_left(folder: Path) -> None:
    arrays = ArrayCache(folder, 10_000)

    def fail() -> None:
        with arrays.new("key", SHAPE) as pack:
            pack.save_rows()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert {path.name for path in folder.iterdir()} == {".lock"}


def test_the_least_recently_used_goes_first(folder: Path) -> None:
    arrays = ArrayCache(folder, 3 * 1168)
    for age, name in enumerate(["new", "middle", "old"]):
        make(arrays, name, age=age)
    assert arrays.find("old") is not None  # used just now, by nobody any more
    make(arrays, "next")
    assert names(arrays) == {"new", "old", "next"}
    make(arrays, "two", count=20)
    assert names(arrays) == {"old", "two"}


def test_one_in_use_stays(folder: Path) -> None:
    arrays = ArrayCache(folder, 2 * 1168)
    make(arrays, "used", age=2)
    make(arrays, "idle", age=1)
    held = arrays.find("used")
    os.utime(folder / "used.npy", (1, 1))
    make(arrays, "next")
    assert names(arrays) == {"used", "next"}
    with pytest.raises(DataError, match=r"take 2.21e-06 GB, 1.17e-06 GB more are in use.*data\.cache_gb"):
        make(arrays, "large", count=20)
    assert names(arrays) == {"used"}
    assert held is not None
    assert pixels_of(held)[3].max() == 3
    del held
    make(arrays, "large", count=20)
    assert names(arrays) == {"large"}


def _use(path: str, ready: Event, done: Event) -> None:
    mapped = ArrayCache(Path(path), 10_000).find("used")
    ready.set()
    done.wait(60)
    assert mapped is not None


def test_another_process_s_use_counts_until_it_ends_however_it_ends(folder: Path) -> None:
    arrays = ArrayCache(folder, 1168)
    make(arrays, "used")
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_use, args=(str(folder), ready, done))
    process.start()
    assert ready.wait(60)
    with pytest.raises(DataError, match="more are in use"):
        make(arrays, "next")
    process.kill()
    process.join(60)
    make(arrays, "next")
    assert names(arrays) == {"next"}


def test_leftovers_of_a_killed_build_go_first_and_running_ones_count(folder: Path) -> None:
    arrays = ArrayCache(folder, 2 * 1168)
    make(arrays, "old", age=1e6)
    (folder / f"{TEMP_PREFIX}dead.npy").write_bytes(bytes(1000))
    with arrays.new("one", SHAPE):
        assert names(arrays) == {"old", f"{TEMP_PREFIX}one"}
        with arrays.new("two", SHAPE):
            assert names(arrays) == {f"{TEMP_PREFIX}one", f"{TEMP_PREFIX}two"}
            with pytest.raises(DataError, match="more are in use"):
                make(arrays, "three")


def test_a_data_set_that_is_too_large_is_told_before_it_is_decoded(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    config = DataConfig(root_dir=str(root), cache_gb=1e-6)
    with pytest.raises(DataError, match=r"data\.cache_gb: the decoded images take 4\.29e-06 GB"):
        load_dataset(config, folder / "c")
    assert not list((folder / "c/packs").glob("*.npy"))


def test_what_can_never_fit_removes_nothing(folder: Path) -> None:
    arrays = ArrayCache(folder, 2 * 1168)
    make(arrays, "idle")
    with pytest.raises(DataError, match=r"take 0.000104 GB, and the cache"):
        make(arrays, "huge", count=1000)
    assert names(arrays) == {"idle"}


def test_data_sets_take_turns(folder: Path) -> None:
    for name in ("one", "two"):
        config = DataConfig(
            root_dir=str(write_folder(folder / name, counts={"train": 8 + 2 * len(name), "val": 8})),
            cache_gb=1e-5,
        )
        load_dataset(config, folder / "c")
        write_folder(folder / name, counts={"train": 16, "val": 10})
        load_dataset(config, folder / "c")
    sizes = [path.stat().st_size for path in (folder / "c/packs").glob("*.npy")]
    assert 0 < sum(sizes) <= 10_000
