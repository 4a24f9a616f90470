"""A byte of the cache of decoded images that changes on disk is found, or changes no pixel that is used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.errors import DataError
from src.utils.config import DataConfig
from tests.images import write_folder, write_npz


def files(folder: Path) -> DataConfig:
    return DataConfig(root_dir=str(write_folder(folder / "d", counts={"train": 12, "val": 8})))


def archive(folder: Path) -> DataConfig:
    return DataConfig(root_dir=str(write_npz(folder / "d.npz", size=16, train=12, val=8, test=0)))


SOURCES = {"files": files, "npz": archive}


def pixels(dataset: Dataset) -> bytes:
    return b"".join(
        dataset.batch(name, np.arange(len(split))).numpy().tobytes() for name, split in dataset.splits.items()
    )


def pack_of(folder: Path) -> Path:
    (path,) = (folder / "c/packs").glob("*.npy")
    return path


def flip(path: Path, place: int) -> None:
    with path.open("rb+", buffering=0) as file:
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 0xFF]))


@pytest.fixture(params=list(SOURCES.values()), ids=list(SOURCES))
def config(request: pytest.FixtureRequest, folder: Path) -> DataConfig:
    make: Callable[[Path], DataConfig] = request.param
    return make(folder)


def test_of_100_flipped_bytes_each_is_found_or_changes_nothing(
    config: DataConfig, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load_dataset(config, folder / "c")
    whole, path = pixels(first), pack_of(folder)
    del first
    shutil.copy(path, folder / "whole.npy")
    random = np.random.default_rng(0)
    # The header is a small part of the file, and every byte of it is tried.
    places = [*range(128), *random.integers(128, path.stat().st_size, 100).tolist()]
    for place in places:
        flip(path, place)
        again = load_dataset(config, folder / "c")
        capsys.readouterr()
        assert pixels(again) == whole, place
        told = capsys.readouterr().err
        assert ("decoded image in the cache is damaged; it was decoded again" in told) == (place >= 128)
        del again
        if place >= 128:  # what was damaged is whole again
            assert pack_of(folder).read_bytes() == (folder / "whole.npy").read_bytes()
        shutil.copy(folder / "whole.npy", pack_of(folder))


def test_an_image_is_checked_once_in_a_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset(files(folder), folder / "c")
    before = pixels(dataset)
    flip(pack_of(folder), 200)
    assert pixels(dataset) != before
    assert capsys.readouterr().err == ""


def test_an_image_whose_file_is_gone_is_named(folder: Path) -> None:
    config = files(folder)
    load_dataset(config, folder / "c")
    dataset = load_dataset(config, folder / "c")
    flip(pack_of(folder), 128)
    for file in (folder / "d").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"\.png .*damaged, and the file cannot be read any more") as told:
        pixels(dataset)
    assert ".png" not in told.value.public


def test_an_image_whose_file_has_changed_is_refused(folder: Path) -> None:
    config = files(folder)
    load_dataset(config, folder / "c")  # reads all pixels, to compare them
    dataset = load_dataset(config, folder / "c")
    flip(pack_of(folder), 128)
    for file in (folder / "d").rglob("*.png"):
        Image.new("L", (16, 16), 7).save(file)
    with pytest.raises(DataError, match="the file has other pixels than it had; start again"):
        pixels(dataset)


def test_a_read_only_cache_is_decoded_again_in_each_process(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = files(folder)
    whole = pixels(load_dataset(config, folder / "c"))
    dataset = load_dataset(config, folder / "c")
    flip(pack_of(folder), 128)
    monkeypatch.setattr("src.data.image_array.Path.open", refuse)
    assert pixels(dataset) == whole
    assert "decoded again" in capsys.readouterr().err


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")
