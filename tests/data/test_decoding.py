"""Images are decoded once, on all cores, whatever happens in between."""

import os
import signal
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
import pytest
from PIL import Image

from src.data import file_index
from src.data.dataset import Dataset, load_dataset
from src.utils.config import DataConfig
from src.utils.io import file_lock
from tests.conftest import FROM_SCRATCH, Run
from tests.flows.processes import start
from tests.forked import Forked
from tests.images import write_folder

COUNTS = {"train": 48, "val": 16}


def load(root: Path, cache: Path, **settings: object) -> Dataset:
    return load_dataset(DataConfig.model_validate({"root_dir": str(root), **settings}), cache)


def pixels_of(dataset: Dataset) -> dict[str, bytes]:
    """The pixels of each sample by the hash that names it."""
    return {
        sample: dataset.batch(name, np.array([i])).numpy().tobytes()
        for name, split in dataset.splits.items()
        for i, sample in enumerate(split.hashes)
    }


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that Pillow opens in this process, each as often as it does."""
    seen: list[str] = []
    really = Image.open

    def noting(file: BinaryIO, **options: Any) -> Image.Image:
        seen.append(Path(file.name).name)
        return really(file, **options)

    monkeypatch.setattr(Image, "open", noting)
    return seen


def test_processes_give_what_one_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(folder / "d", counts={"train": 300, "val": 60})
    (root / "A/train/neg/p000_0.png").write_bytes(b"no image")
    many = load(root, folder / "many", on_bad_image="skip")
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    one = load(root, folder / "one", on_bad_image="skip")
    assert many.counts["bad_images"] == one.counts["bad_images"] == 1
    assert (many.fingerprint, many.split_fingerprint) == (one.fingerprint, one.split_fingerprint)
    assert pixels_of(many) == pixels_of(one)
    image = np.asarray(Image.open(root / "A/val/pos/p029_59.png")).tobytes()
    assert image in pixels_of(many).values()


def _kill_at_the_60th() -> None:
    file_index._SHARE = 0  # kept after every image, not every ten seconds
    really, seen = Image.open, []

    def opening(file: BinaryIO, **options: Any) -> Image.Image:
        seen.append(file)
        if len(seen) == 64 + 60:  # one look at each header, then once for each image
            os.kill(os.getpid(), signal.SIGKILL)
        return really(file, **options)

    Image.open = opening  # type: ignore[assignment]


def test_a_killed_process_leaves_what_it_has_decoded(folder: Path, opened: list[str]) -> None:
    write_folder(folder / "d", counts=COUNTS)
    options = ["--data", "d", "--dry-run", *FROM_SCRATCH]
    killed = Forked("train", folder, options, _kill_at_the_60th)
    with pytest.raises(AssertionError):
        assert killed.wait(60) == 0
    assert killed.is_killed
    opened.clear()
    found = pixels_of(load(folder / "d", folder / "outputs/cache"))
    # 32 of 64 are kept; of the others the header is looked at, and again with the pixels.
    assert len(opened) == 2 * 32
    opened.clear()
    assert found == pixels_of(load(folder / "d", folder / "c"))
    assert not list((folder / "outputs/cache").rglob(".tmp-*"))


def test_only_the_image_that_is_new_is_opened(folder: Path, opened: list[str]) -> None:
    root = write_folder(folder / "d", counts=COUNTS)
    load(root, folder / "c")
    Image.fromarray(np.full((16, 16), 9, np.uint8)).save(root / "A/train/neg/a_new_one.png")
    (root / "A/train/pos/p003_7.png").unlink()
    opened.clear()
    dataset = load(root, folder / "c")
    assert set(opened) == {"a_new_one.png"}
    assert len(dataset.splits["train"]) == 48
    assert pixels_of(dataset) == pixels_of(load(root, folder / "anew"))


def test_pixels_seen_through_another_window_are_not_taken_over(folder: Path) -> None:
    root = write_folder(folder / "d", counts=COUNTS)
    for file in root.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 16).save(file)
    wide, narrow = (load(root, folder / "c", window=(0.0, high)) for high in (4096.0, 2048.0))
    assert pixels_of(wide).keys() == pixels_of(narrow).keys()
    assert pixels_of(narrow) == pixels_of(load(root, folder / "anew", window=(0.0, 2048.0)))


def test_who_waits_for_another_process_is_told(folder: Path) -> None:
    root = write_folder(folder / "d", counts=COUNTS)
    load(root, folder / "c")
    (lock,) = (folder / "c/index").glob("*.lock")
    waiting = "waiting for another process that decodes the images of"
    with file_lock(lock):
        options = ["--data", "d", "--dry-run", *FROM_SCRATCH, "--set", "data.cache_dir=c"]
        process = start(folder, "-m", "src.train", *options)
        assert process.stderr is not None
        assert waiting in process.stderr.readline()
    assert process.wait(60) == 0


def test_workers_end_with_a_parent_that_is_killed(folder: Path) -> None:
    write_folder(folder / "d", counts={"train": 600, "val": 60})
    options = ["--data", "d", "--dry-run", *FROM_SCRATCH, "--set", "data.image_size=512"]
    process = start(folder, "-m", "src.train", *options)
    parent, deadline = psutil.Process(process.pid), time.monotonic() + 60
    # The server and two workers; the tracker of resources as well.
    while len(children := parent.children(recursive=True)) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive


SCRIPT = """
from src.api import Config
from src.data.dataset import load_dataset

config = Config.from_dict({"data": {"root_dir": "d"}})
print(len(load_dataset(config.data, config.cache_dir).splits["train"]))
"""


@pytest.mark.slow
def test_a_script_is_not_started_again_in_the_workers(folder: Path, run_python: Run) -> None:
    """It lacks the guard that multiprocessing asks for."""
    write_folder(folder / "d", counts={"train": 300, "val": 16})
    (folder / "script.py").write_text(SCRIPT)
    done = run_python("script.py")
    assert (done.returncode, done.stdout) == (0, "300\n"), done
