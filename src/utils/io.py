"""Files: written whole or not at all, and opened for reading only if they are regular files."""

import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from ..errors import ConfigError

TEMP_PREFIX = ".tmp-"
"""Names of files that were being written; one that is left over after a crash is safe to delete."""

_SMALL_FILE = 64 * 1024
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class NotRegularFileError(OSError):
    """What was to be read is not a regular file; reading it could wait forever or never end."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never wait for a pipe, a device or a socket.

    Raises:
        NotRegularFileError: Something else is there; the message names its kind, not the path.
        OSError: It is missing or cannot be opened.
    """
    _check_regular(path.stat())  # before opening, which alone makes some devices act
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 -- a Path takes no opener
    try:
        _check_regular(os.fstat(file.fileno()))  # what was opened, whatever the path names by now
    except BaseException:
        file.close()
        raise
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _check_regular(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise NotRegularFileError(f"is {_KINDS.get(kind, 'something else')}, not a regular file")


def _fsync_name(path: Path) -> None:
    """Make a new name in a folder survive a power cut.

    A failure is never tried again: the kernel reports an error once, and a second call succeeds without it.
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
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    The temporary lies in the same folder, so that the last step is a rename and never a copy.

    Args:
        path: The file to write; its folder is made where it is missing.

    Yields:
        A binary file handle, open for writing.

    Raises:
        OSError: Nothing could be written; ``path`` is as it was. Only where the message says that the
            file is in place is ``path`` the new file, whole, that a power cut may take back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process in the name: what it leaves when it is killed is known to be nobody's.
    temp = path.parent / f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(8)}{path.suffix}"
    # Unlike mkstemp's, its mode is that of any new file: the kernel applies the umask, which a process
    # cannot ask for without changing it under its other threads.
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
            # A failed write, such as on a full disk, does not know its file; the user needs to.
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
    """Write all of ``data`` at an offset of an open file that several processes fill."""
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done


def atomic_link(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a copy if the file system has no links.

    An existing ``target`` is replaced in one step. ``source`` must be a file that is only ever
    replaced, never written in place.
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
        temp.unlink(missing_ok=True)  # also left behind by a rename between two links to one file
    _fsync_name(target)


def is_temp(path: Path) -> bool:
    """Return whether a path is a temporary file or folder of an atomic write, by its name."""
    return path.name.startswith(TEMP_PREFIX)


def remove_temps(folder: Path) -> None:
    """Remove temporary files that dead processes left below a folder that nobody writes to."""
    for left in folder.rglob(f"{TEMP_PREFIX}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def file_lock(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file ``path`` (created if missing) against other processes and threads.

    Args:
        path: The file.
        timeout: Seconds to wait; -1 waits for as long as it takes.

    Raises:
        filelock.Timeout: Somebody else held it all the time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=timeout):
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock on a file; it is asked without making, and hardly taking, one."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):  # some file systems say the second for the first
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
    """Return the path of an output file, checked before anything is computed for it.

    Raises:
        ConfigError: It ends otherwise, or there is no folder for it.
    """
    if path.suffix.lower() not in endings:
        raise ConfigError(f"--output {path}: its ending must be one of {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}")
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
