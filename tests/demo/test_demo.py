import hashlib
import multiprocessing
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import src.demo.demo
from src.demo.demo import DEMO_NAME, DEMO_PATIENT_REGEX, make_demo
from src.errors import DataError
from src.utils.io import TEMP_PREFIX

PHASES = ("A", "P")
CLASSES = ("benign", "malignant")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(root: Path) -> str:
    """One hash over the names and bytes of all files under ``root``."""
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(root).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def patients_of(folder: Path) -> set[str]:
    matches = [re.search(DEMO_PATIENT_REGEX, name) for name in names(folder)]
    return {match.group(1) for match in matches if match}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of six patients, where only the making is looked at."""
    monkeypatch.setattr(src.demo.demo, "_PATIENTS", 6)


def test_the_folder_has_two_phases_of_two_classes_and_says_that_it_is_synthetic(demo: Path) -> None:
    assert DEMO_NAME == "demo"
    assert demo.name == "demo-v1"
    assert names(demo) == ["A", "P", "README.txt"]
    assert [names(demo / phase) for phase in PHASES] == [list(CLASSES)] * 2
    assert (demo / "README.txt").read_text(encoding="utf-8").startswith("SYNTHETIC images, not patient data.")


def test_both_phases_hold_the_same_files(demo: Path) -> None:
    for name in CLASSES:
        assert names(demo / "A" / name) == names(demo / "P" / name)
        assert 250 < len(names(demo / "A" / name)) < 450


def test_every_file_names_its_patient_and_no_patient_is_in_two_classes(demo: Path) -> None:
    for name in CLASSES:
        assert all(re.fullmatch(r"p\d{4}_[123]\.png", file) for file in names(demo / "A" / name))
    benign, malignant = (patients_of(demo / "A" / name) for name in CLASSES)
    assert len(benign) == len(malignant) == src.demo.demo._PATIENTS // 2
    assert not benign & malignant


def test_images_are_8_bit_gray_of_64_pixels_with_contrast(demo: Path) -> None:
    for path in demo.glob("*/*/*.png"):
        with Image.open(path) as image:
            assert (image.size, image.mode, image.format) == ((64, 64), "L", "PNG")
            assert np.asarray(image)[8:40, 10:40].std() > 5


def test_the_phases_and_the_slices_are_different_images(demo: Path) -> None:
    contents = [path.read_bytes() for path in demo.glob("*/*/*.png")]
    assert len(set(contents)) == len(contents)


def test_the_same_bytes_every_time(demo: Path, tmp_path: Path) -> None:
    assert digest(make_demo(tmp_path)) == digest(demo)


@pytest.mark.usefixtures("small")
def test_the_second_call_writes_nothing(tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in make_demo(tmp_path).rglob("*")}
    assert {path: path.stat().st_mtime_ns for path in make_demo(tmp_path).rglob("*")} == before
    assert len(before) > 20


def _make(cache_dir: Path, patients: int, barrier: "multiprocessing.synchronize.Barrier") -> None:
    src.demo.demo._PATIENTS = patients
    barrier.wait()
    make_demo(cache_dir)


@pytest.mark.usefixtures("small")
def test_processes_may_start_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_make, args=(tmp_path / "shared", 6, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert digest(tmp_path / "shared" / "demo-v1") == digest(make_demo(tmp_path / "alone"))
    assert not list((tmp_path / "shared").glob(f"{TEMP_PREFIX}*"))


@pytest.mark.usefixtures("small")
def test_what_a_killed_process_left_is_swept_and_not_taken_for_the_data(tmp_path: Path) -> None:
    half = tmp_path / f"{TEMP_PREFIX}demo-v1-12345"
    shutil.copytree(make_demo(tmp_path / "whole"), half)
    target = make_demo(tmp_path)
    assert not half.exists()
    assert digest(target) == digest(tmp_path / "whole" / "demo-v1")


@pytest.mark.usefixtures("small")
def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        # A class of this name cannot be a folder, so the write fails once the first class is there.
        patch.setattr(src.demo.demo, "_CLASSES", ("benign", "x" * 300))
        with pytest.raises(DataError, match=r"cannot be made in .*demo-v1: File name too long"):
            make_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] in ([".demo-v1.lock"], [])
    assert (make_demo(tmp_path) / "README.txt").is_file()


@pytest.mark.usefixtures("small")
def test_something_else_under_that_name_is_refused_and_kept(tmp_path: Path) -> None:
    mine = tmp_path / "demo-v1" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    with pytest.raises(DataError, match="move that folder away"):
        make_demo(tmp_path)
    assert mine.read_text() == "keep"
    assert not list(tmp_path.glob(f"{TEMP_PREFIX}*"))


def test_a_cache_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another cache folder"):
        make_demo(tmp_path / "file" / "cache")
