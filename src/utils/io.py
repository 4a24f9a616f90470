"""Files: atomic writes, links, locks, hashes, temporary files, and reading of regular files only."""

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import psutil
from filelock import FileLock

from ..errors import ConfigError
from .contained import files_below, is_regular_file

TEMP_PREFIX = ".tmp-"
"""Prefix of temporary files; those of a dead process are safe to delete."""

_SMALL_FILE = 64 * 1024
_TEMP_OWNER = re.compile(re.escape(TEMP_PREFIX) + r"(\d{1,9})-")
_DAY, _MINUTE = 86400.0, 60.0
_RUN_ID_FILE = "run_id"
_MAX_RUN_ID = 256  # bytes; MLflow's ids have 32
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class NotRegularFileError(OSError):
    """A path is not a regular file, so that reading it might block forever."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without blocking on a pipe, a device or a socket.

    Raises:
        NotRegularFileError: It is not a regular file; the message names its kind, not the path.
        OSError: It is missing or cannot be opened.
    """
    _check_regular(path.stat())  # before opening, which alone makes some devices act
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 -- a Path takes no opener
    try:
        _check_regular(os.fstat(file.fileno()))  # the path may have changed since the first check
    except BaseException:
        file.close()
        raise
    return file


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _check_regular(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise NotRegularFileError(f"is {_KINDS.get(kind, 'something else')}, not a regular file")


def _fsync_name(path: Path) -> None:
    """Make a new name in a folder survive a power cut.

    Failures are not retried: the kernel reports an error only once, so that a second call would succeed.
    """
    try:
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        why = f"{error.strerror}; the file is in place, but may be lost in a power cut"
        raise OSError(error.errno, why, str(path)) from None


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file, open for writing, that replaces ``path`` if the block ends without an error.

    It is in the same folder, which is created if missing, so that the last step is a rename, never a copy.

    Raises:
        OSError: Writing failed, and ``path`` is unchanged. If the message says that the file is in place,
            ``path`` is the complete new file, but a power cut may restore the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id in the name shows whether the file is orphaned.
    temp = path.parent / f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{path.suffix}"
    # mkstemp would ignore the umask, and reading the umask would change it for other threads.
    handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
    except BaseException as error:
        temp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # The error of a failed write, such as on a full disk, does not name the file.
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    _fsync_name(path)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_file(path) as file:
        file.write(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    atomic_write_bytes(path, text.encode())


def write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at an offset of an open file, which several processes may fill at once."""
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done


def atomic_link(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a copy if the file system has no links.

    An existing ``target`` is replaced atomically. ``source`` must never be written in place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.parent / f"{TEMP_PREFIX}{os.getpid()}-{target.name}"
    temp.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temp)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temp)
            with temp.open("rb") as file:
                os.fsync(file.fileno())
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)  # a rename between two links to the same file does nothing
    _fsync_name(target)


def is_temp(path: Path) -> bool:
    """Return whether the name of a path is that of a temporary file or folder."""
    return path.name.startswith(TEMP_PREFIX)


def remove_temps(folder: Path) -> None:
    """Remove temporary files that dead processes left below a folder that nobody writes to."""
    for left in folder.rglob(f"{TEMP_PREFIX}*"):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Temp:
    """A temporary file or folder.

    Attributes:
        path: Its path.
        size: Its size in bytes.
        age: Seconds since the last write to it.
        is_orphaned: Whether its process is gone, or it is older than a day.
    """

    path: Path
    size: int
    age: float
    is_orphaned: bool

    def remove(self) -> None:
        """Delete it, unless a link has replaced its folder."""
        folder = self.path.parent
        if folder.resolve() == Path.cwd().resolve() / folder:
            _remove(self.path)


def find_temps(output: Path, *others: Path) -> list[Temp]:
    """Find temporary files below ``output`` and directly in the other folders, without following links."""
    pattern, found = f"{TEMP_PREFIX}*", []
    paths = [*output.rglob(pattern), *(path for folder in others for path in folder.glob(pattern))]
    # Only the parent is resolved: a link can be a temporary file itself, but its target is not one.
    for path in dict.fromkeys(path.parent.resolve() / path.name for path in paths):
        with suppress(FileNotFoundError):  # its process has finished
            age = time.time() - path.lstat().st_mtime
            files = files_below(path) if path.is_dir() and not path.is_symlink() else [path]
            size = sum(file.lstat().st_size for file in files)
            found.append(Temp(relative_to_cwd(path), size, age, _is_orphaned(path, age)))
    return sorted(found, key=lambda temp: temp.path)


def _is_orphaned(path: Path, age: float) -> bool:
    if is_regular_file(path) and is_locked(path):
        return False
    owner = _TEMP_OWNER.match(path.name)
    # The process may run on another machine that shares the folder: wait a minute before calling it gone.
    is_process_gone = owner is not None and not psutil.pid_exists(int(owner[1])) and age > _MINUTE
    return is_process_gone or age > _DAY


def relative_to_cwd(path: Path) -> Path:
    """Return a path for messages, relative to the working folder if it is below that."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path


def write_run_id(folder: Path, run_id: str) -> None:
    """Write a run's id into a folder, which is created if missing, to show whose files it holds."""
    if read_run_id(folder) != run_id:
        atomic_write_text(folder / _RUN_ID_FILE, f"{run_id}\n")


def read_run_id(folder: Path) -> str | None:
    """Return the id of the run that a folder belongs to; None if it names none."""
    path = folder / _RUN_ID_FILE
    if not is_regular_file(path):
        return None
    with path.open("rb") as file:
        return file.read(_MAX_RUN_ID).decode(errors="replace").strip() or None


@contextmanager
def file_lock(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file ``path`` (created if missing) against other processes and threads.

    Args:
        path: The lock file.
        timeout: Seconds to wait; -1 waits without a limit.

    Raises:
        filelock.Timeout: The lock was not released in time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=timeout):
        yield


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock on a file; no file is created, and no lock is kept."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):  # some file systems raise the second instead of the first
        return True
    return False


def check_writable(folder: Path) -> None:
    """Create a folder if it is missing, and check that it is writable.

    Raises:
        OSError: It cannot be written, or has no room for a small file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_SMALL_FILE))


def checked_output(path: Path, endings: tuple[str, ...]) -> Path:
    """Return the path of an output file after checking it, before anything is computed.

    Raises:
        ConfigError: The suffix is not one of ``endings``, or the parent folder does not exist.
    """
    if path.suffix.lower() not in endings:
        raise ConfigError(f"--output {path}: its ending must be one of {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output {path}: folder {path.parent} not found")
    return path


def sha256(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines joined by line feeds, in hexadecimal, without joining them in memory."""
    digest, rest, start = hashlib.sha256(), iter(lines), ""
    while some := list(islice(rest, 4096)):
        digest.update((start + "\n".join(some)).encode())
        start = "\n"
    return digest.hexdigest()
