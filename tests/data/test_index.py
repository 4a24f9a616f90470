"""The index keeps what is known of each file, whatever its name, and takes over earlier versions' files."""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import load_dataset
from src.data.file_index import FileIndex
from src.data.file_info import FileInfo, SharedInfo, stat_files
from src.data.listing import Sample
from src.utils.config import DataConfig
from tests.images import write_folder

SHA = "00" + 28 * "5a" + "000000"
ENTRIES = [
    FileInfo(1, 2, 3, 4, 5, 1, sha=SHA, observed=(0.0, 255.0)),
    FileInfo(1, 2, 3, 4, 5, 1, SHA, (-0.5, 1 / 3), SharedInfo("patient", (0.1, 4095.0), (-160.0, 240.0))),
    FileInfo(7, 8, 9, shared=SharedInfo(error="damaged\0, or\nworse")),
]


def sample(path: Path, key: str) -> Sample:
    return Sample(str(path), key, 0, None, None)


@pytest.mark.parametrize("name", ["plain.png", "two\nlines.png", "é\udcff.png", " "])
def test_entries_come_back_as_they_were(folder: Path, name: str) -> None:
    (folder / name).touch()
    (state,) = stat_files([str(folder / name)], {}).pick([0])
    for entry in ENTRIES:
        index = FileIndex(folder / "i.npz")
        known = replace(entry, size=state.size, mtime_ns=state.mtime_ns, ctime_ns=state.ctime_ns)
        index.learn(sample(folder / name, f"x/{name}"), replace(known, shared=SharedInfo(error="before")))
        index.save()
        index.learn(sample(folder / name, f"x/{name}"), known)
        index.learn(sample(folder, "other"), ENTRIES[0])
        index.save()
        asked = [sample(folder / other, f"x/{other}") for other in ("gone", name, "new")]
        (folder / "new").touch()
        found = list(FileIndex.load(folder / "i.npz").look_up(asked).pick(range(3)))
        assert found[0] == FileInfo(
            -1, 0, 0, shared=SharedInfo(error=f"{folder}/gone: No such file or directory")
        )
        assert found[1] == known
        assert (found[2].size, found[2].sha, found[2].shared.error) == (0, "", "")


def test_what_was_changed_or_is_to_be_forgotten_is_not_known(folder: Path) -> None:
    samples = [sample(folder / name, name) for name in "abc"]
    for one in samples:
        Path(one.file).write_text("x")
    index = FileIndex(folder / "i.npz")
    for one, entry in zip(samples, stat_files([one.file for one in samples], {}).pick(range(3)), strict=True):
        index.learn(one, replace(entry, sha=SHA))
    index.save()
    (folder / "b").write_text("longer")
    assert index.look_up(samples).is_done.tolist() == [True, False, True]
    index.forget(samples[:1])
    assert index.look_up(samples).is_done.tolist() == [False, False, True]
    index.save()
    assert FileIndex.load(folder / "i.npz").look_up(samples).is_done.tolist() == [False, False, True]


def test_times_before_1970_and_after_2500_are_times(folder: Path) -> None:
    index = FileIndex(folder / "i.npz")
    for place, time in enumerate([-1, 2**64 - 10**18]):
        index.learn(sample(folder, str(place)), FileInfo(1, time, time, sha=SHA))
    index.save()
    assert FileIndex.load(folder / "i.npz").table.rows["mtime_ns"].tolist() == [2**64 - 1, 2**64 - 10**18]


def test_an_index_of_an_earlier_version_is_taken_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    config = DataConfig(root_dir=str(root))
    first = load_dataset(config, folder / "c")
    (path,) = (folder / "c/index").glob("*.npz")
    old, arrays = path.with_suffix(".json"), sorted((folder / "c/packs").iterdir())
    path.unlink()
    old.write_text(json.dumps({file.relative_to(root).as_posix(): row(file) for file in root.rglob("*.png")}))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    for _ in range(2):
        assert load_dataset(config, folder / "c").fingerprint == first.fingerprint
        assert path.exists()
        assert not old.exists()
    assert sorted((folder / "c/packs").iterdir()) == arrays


def row(file: Path) -> list[object]:
    """What earlier versions kept of an 8-bit gray image of 16 x 16 pixels."""
    with Image.open(file) as image:
        pixels = np.asarray(image)
    sha = hashlib.sha256(b"(16, 16)" + pixels.tobytes()).hexdigest()
    state, observed = file.stat(), [float(pixels.min()), float(pixels.max())]
    times = [state.st_mtime_ns, state.st_ctime_ns]
    return [state.st_size, *times, 16, 16, 1, "", sha, observed, None, None, ""]


def earlier_row(entry: FileInfo) -> list[object]:
    *state, sha, observed, shared = (getattr(entry, field.name) for field in fields(entry))
    return [*state, shared.patient, sha, observed, *shared[1:]]


def test_what_earlier_versions_kept_of_dicom_and_bad_files_is_taken_over(folder: Path) -> None:
    rows = {f"x/{place}": earlier_row(entry) for place, entry in enumerate(ENTRIES)}
    (folder / "i.json").write_text(json.dumps(rows))
    for _ in range(2):
        index = FileIndex.load(folder / "i.npz")
        assert list(index.places) == list(rows)
        assert list(index.table.pick(range(3))) == ENTRIES
