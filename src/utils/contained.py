"""Paths that come from a store: only what really lies below a folder of ours is read or deleted."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path


def contained(root: Path, path: Path) -> Path | None:
    """Return where ``path`` really is, if that is strictly below ``root``.

    Links are followed in ``root``, which is the user's own choice, and nowhere below it.

    Args:
        root: A folder that the user has named.
        path: A path that starts with ``root``; the rest may hold anything.

    Returns:
        The path with all links in ``root`` resolved; None if a link, ``..``, an absolute part or a
        character that no path can hold leads elsewhere. Whether anything is there is not looked at.
    """
    try:
        relative, real = path.relative_to(root), root.resolve()
        target = real / relative
        is_below = relative.parts and ".." not in relative.parts and target.resolve() == target
    except (OSError, ValueError, RuntimeError):  # not below, a NUL byte, a loop of links
        return None
    return target if is_below else None


def is_regular_file(path: Path) -> bool:
    """Whether a regular file is there, and no link to one."""
    try:
        return path.is_file() and not path.is_symlink()
    except (OSError, ValueError):  # too long a name, a NUL byte
        return False


def files_below(folder: Path) -> list[Path]:
    """Return the regular files below a folder; links are neither followed nor listed."""
    return [path for path in folder.rglob("*") if is_regular_file(path)]


def remove_tree(root: Path, path: Path) -> None:
    """Delete a folder and all below it; a folder that is gone already is no error.

    Each step down from ``root`` refuses a link, so that one that takes a folder's place in the meantime
    leads the deletion nowhere.

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
