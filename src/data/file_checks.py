"""Find broken and identical image files, within limits on time."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from ..utils.cli import counted
from ..utils.io import open_regular
from ..utils.limits import IMAGE_BYTES
from .image_files import read_image
from .listing import UNKNOWN, Sample
from .pixels import ImageError
from .problems import listed

_SECONDS = 20.0  # for each check


def check_files(root: Path, keys: Sequence[str]) -> tuple[list[str], bool]:
    """Decode images and compare their bytes.

    Args:
        root: The folder that the keys start at.
        keys: Relative paths of the images.

    Returns:
        One sentence per finding, and whether images cannot be read.
    """
    broken, decoded = _find_broken(root, keys)
    notes = (
        []
        if decoded == len(keys)
        else [f"{decoded:,} of {len(keys):,} images were decoded ({_SECONDS:.0f} s)"]
    )
    if broken:
        notes.append(f"{counted(len(broken), 'image')} cannot be read: {listed(broken, 3)}")
    if copies := _find_copies(root, keys):
        notes.append(
            f"{sum(map(len, copies)) - len(copies)} files are copies of others, such as "
            f"{' and '.join(copies[0][:2])}; a generated split keeps copies together"
        )
    return notes, bool(broken)


def _find_broken(root: Path, keys: Sequence[str]) -> tuple[list[str], int]:
    """Return the images that cannot be read, and how many were tried; every n-th first, if time is short."""
    end, broken, tried = monotonic() + _SECONDS, [], 0
    step = max(1, len(keys) // 500)
    for key in [key for start in range(step) for key in keys[start::step]]:
        if monotonic() > end:
            break
        tried += 1
        try:
            read_image(Sample(str(root / key), key, UNKNOWN, None, None))
        except ImageError as error:
            broken.append(str(error).removeprefix(f"{root}/"))
    return sorted(broken), tried


def _find_copies(root: Path, keys: Sequence[str]) -> list[list[str]]:
    """Return groups of files with the same bytes."""
    end = monotonic() + _SECONDS
    by_size: dict[int, list[str]] = {}
    for key in keys:
        path = root / key
        if path.is_file() and monotonic() < end:
            by_size.setdefault(path.stat().st_size, []).append(key)
    copies: dict[str, list[str]] = {}
    for size, names in by_size.items():
        for key in names if len(names) > 1 and size <= IMAGE_BYTES.value else ():
            if monotonic() < end:
                copies.setdefault(_hash(root / key), []).append(key)
    return [names for names in copies.values() if len(names) > 1]


def _hash(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError:
        return str(path)  # equal to no other
