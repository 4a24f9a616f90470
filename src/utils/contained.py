"""Check that paths from a store are below a given folder before they are read or deleted."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path


def contained(root: Path, path: Path) -> Path | None:
    """Return the resolved ``path`` if it is strictly below ``root``; it need not exist.

    Args:
        root: A trusted folder, in whose own path links are followed.
        path: An untrusted path that starts with ``root``.

    Returns:
        The path with the links in ``root`` resolved; None if the rest contains a link, ``..``, an absolute
        part or an invalid character.
    """
    try:
        relative, real = path.relative_to(root), root.resolve()
        target = real / relative
        is_below = relative.parts and ".." not in relative.parts and target.resolve() == target
    except (OSError, ValueError, RuntimeError):  # not below, a NUL byte, a loop of links
        return None
    return target if is_below else None


def is_regular_file(path: Path) -> bool:
    """Return whether a path is a regular file, not a link to one."""
    try:
        return path.is_file() and not path.is_symlink()
    except (OSError, ValueError):  # too long a name, a NUL byte
        return False


def files_below(folder: Path) -> list[Path]:
    """Return the regular files below a folder; links are neither followed nor listed."""
    return [path for path in folder.rglob("*") if is_regular_file(path)]


def remove_tree(root: Path, path: Path) -> None:
    """Delete a folder and everything below it, if it exists.

    Each folder below ``root`` is opened without following links, so that a link that replaces a folder in
    the meantime cannot redirect the deletion.

    Args:
        root: A folder without links in its path, as `contained` resolves it.
        path: A folder below it.

    Raises:
        OSError: Something cannot be deleted, or is a link.
    """
    *parents, name = path.relative_to(root).parts
    try:
        with ExitStack() as opened:
            flags, here = os.O_RDONLY | os.O_DIRECTORY, None
            for part in (str(root), *parents):
                here = os.open(part, flags | os.O_NOFOLLOW, dir_fd=here)
                opened.callback(os.close, here)
            shutil.rmtree(name, dir_fd=here)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
