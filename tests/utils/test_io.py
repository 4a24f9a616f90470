"""The atomic writer."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from src.utils.io import atomic_file, atomic_link, atomic_write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError


def test_replaces_whole(folder: Path) -> None:
    path = folder / "new/deep/a.txt"
    atomic_write_text(path, "one")
    atomic_write_text(path, "two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_no_temp(folder: Path) -> None:
    path = folder / "a.bin"
    atomic_write_text(path, "old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert path.read_text() == "old"
    assert names(folder) == ["a.bin"]


def test_files_are_as_readable_as_others(folder: Path) -> None:
    (folder / "plain").write_text("")
    atomic_write_text(folder / "ours", "")
    assert stat.S_IMODE((folder / "ours").stat().st_mode) == stat.S_IMODE((folder / "plain").stat().st_mode)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_of_other_threads_keep_their_umask(folder: Path, umask: int, mode: int) -> None:
    """The umask is one for all threads: a writer that sets it opens the files that others make meanwhile."""
    ours, theirs = folder / "ours", folder / "theirs"
    theirs.mkdir()
    is_over = threading.Event()

    def create(name: str) -> None:
        number = 0
        while not is_over.is_set():
            os.close(os.open(theirs / f"{name}{number % 1000}", os.O_CREAT, 0o666))
            number += 1

    before = os.umask(umask)
    threads = [threading.Thread(target=create, args=(name,)) for name in "ab"]
    try:
        for thread in threads:
            thread.start()
        for number in range(100):
            atomic_write_text(ours / str(number), "")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        now = os.umask(before)
    assert now == umask
    assert modes(ours) == modes(theirs) == {mode}


def test_no_write_sets_the_umask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "umask", calls.append)
    atomic_write_text(folder / "a", "")
    assert calls == []


def test_a_failed_write_names_the_file(folder: Path) -> None:
    path = folder / "a.bin"
    with pytest.raises(OSError, match=r"a\.bin"), atomic_file(path):
        raise OSError(28, "No space left on device")


def test_a_name_that_may_not_be_durable_is_reported_and_the_file_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    atomic_write_text(folder / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", refuse_folders)
    with pytest.raises(OSError, match=r"Input/output error; the file is in place, .*a\.txt") as raised:
        atomic_write_text(folder / "a.txt", "new")
    assert raised.value.errno == errno.EIO
    with pytest.raises(OSError, match=r"the file is in place, .*b\.txt"):
        atomic_link(folder / "a.txt", folder / "b.txt")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "new", "b.txt": "new"}


def test_link_shares_the_bytes_and_survives_the_next_write(folder: Path) -> None:
    source, target = folder / "latest", folder / "best/best"
    atomic_write_text(source, "1")
    atomic_link(source, target)
    assert source.stat().st_ino == target.stat().st_ino
    atomic_link(source, target)  # again: a rename between two links of one file does nothing by itself
    atomic_write_text(source, "2")
    assert (source.read_text(), target.read_text()) == ("2", "1")
    atomic_link(source, target)
    assert target.read_text() == "2"
    assert names(folder) == ["best", "latest"]
    assert names(folder / "best") == ["best"]
