"""Decodes every image once: an index of content hashes, and packs of resized uint8 pixels.

``index/{root}.json`` maps (key, size, mtime_ns) of a file to the hash of its pixels, so that a later
start opens no image. ``packs/{content}.npy`` holds the resized images ``(N, C, S, S)``, named by the
hashes of what is in it, and is mapped into memory, not loaded.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from src.data.images import BadImage, Pixels, resize
from src.data.samples import Listing, Sample
from src.errors import DataError
from src.utils.io import TEMP_PREFIX, atomic_write_text, file_lock, sha256
from src.utils.progress import track

FORMAT = 1
"""Part of every name in the cache: raise it when decoding, hashing or resizing changes."""

AUTO_SIZE_LIMIT = 224

_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index knows of one file: its state on disk, and what its pixels were found to be.

    ``sha`` is the SHA-256 of the decoded pixels, empty where ``error`` says why there are none.
    """

    size: int
    mtime_ns: int
    height: int
    width: int
    channels: int
    sha: str = ""
    error: str = ""


@dataclass(frozen=True)
class DecodedImages:
    """The readable images of a listing.

    Attributes:
        pixels: uint8 ``(N, C, S, S)``, mapped from disk.
        samples: The N samples, in the order of ``pixels``.
        hashes: SHA-256 of the native pixels of each.
        bad: One message per image that could not be read.
    """

    pixels: NDArray[np.uint8]
    samples: tuple[Sample, ...]
    hashes: tuple[str, ...]
    bad: tuple[str, ...]


def decode_listing(
    listing: Listing, cache_dir: Path, image_size: int | str, channels: int | str, *, rehash: bool = False
) -> DecodedImages:
    """Returns the decoded images of a listing, from the cache where it has them.

    Several processes may call this at once: one decodes, the others wait and read.

    Args:
        listing: What to decode.
        cache_dir: Folder of the cache.
        image_size: Side in pixels, or ``auto``.
        channels: 1, 3 or ``auto``.
        rehash: Decode and hash all files again, whatever the index says.

    Raises:
        DataError: No image can be read, or the cache cannot be written.
    """
    root = sha256(str(listing.root.resolve()).encode())[:16]
    index_path = cache_dir / "index" / f"{root}-v{FORMAT}.json"
    try:
        with file_lock(index_path.with_suffix(".lock")):
            index = _read_index(index_path)
            if rehash:
                ours = {sample.key for sample in listing.samples}
                index = {key: entry for key, entry in index.items() if key not in ours}
            return _decode(listing, index, index_path, cache_dir / "packs", (image_size, channels))
    except OSError as error:
        raise DataError(f"{cache_dir}: the cache of decoded images cannot be written: {error}") from None


def _decode(
    listing: Listing,
    index: dict[str, Entry],
    index_path: Path,
    packs: Path,
    wanted: tuple[int | str, int | str],
) -> DecodedImages:
    before = [_entry_before_decoding(listing, sample, index) for sample in listing.samples]
    size, channels = _resolve_shape(before, *wanted)
    pack = _pack_path(packs, before, size, channels)
    if not pack.exists() or any(not (entry.sha or entry.error) for entry in before):
        temp = packs / f"{TEMP_PREFIX}{index_path.stem}.npy"
        before, pack = _build_pack(listing, before, temp, size, channels)
        keys = (sample.key for sample in listing.samples)
        _write_index(index_path, index | dict(zip(keys, before, strict=True)))
    good = [i for i, entry in enumerate(before) if entry.sha]
    if not good:
        raise DataError(
            f"{listing.root}: none of {len(before)} images can be read; the first: {before[0].error}"
        )
    return DecodedImages(
        # Copy-on-write, so that torch takes the array as writable while the file stays as it is.
        pixels=np.load(pack, mmap_mode="c", allow_pickle=False),
        samples=tuple(listing.samples[i] for i in good),
        hashes=tuple(before[i].sha for i in good),
        bad=tuple(entry.error for entry in before if entry.error),
    )


def _read_index(path: Path) -> dict[str, Entry]:
    try:
        return {key: Entry(*row) for key, row in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        return {}  # damaged: it is only a memory of what can be computed again


def _write_index(path: Path, index: dict[str, Entry]) -> None:
    atomic_write_text(path, json.dumps({key: astuple(entry) for key, entry in index.items()}))


def _entry_before_decoding(listing: Listing, sample: Sample, index: dict[str, Entry]) -> Entry:
    """The index's entry where the file is unchanged, else one with the header only."""
    try:
        state = sample.file.stat()
    except OSError as gone:
        return Entry(_UNKNOWN, 0, 0, 0, 0, error=f"{sample.file}: {gone.strerror}")
    known = index.get(sample.key)
    if known is not None and (known.size, known.mtime_ns) == (state.st_size, state.st_mtime_ns):
        return known
    fresh = Entry(state.st_size, state.st_mtime_ns, 0, 0, 0)
    try:
        return replace(fresh, **listing.header(sample)._asdict())
    except BadImage as bad:
        return _with_error(fresh, bad)


def _with_error(entry: Entry, bad: BadImage) -> Entry:
    # What may be readable next time gets a size that no file has, so that the index does not match.
    return replace(entry, size=entry.size if bad.lasting else _UNKNOWN, sha="", error=str(bad))


def _resolve_shape(entries: Sequence[Entry], image_size: int | str, channels: int | str) -> tuple[int, int]:
    shapes = [(max(entry.height, entry.width), entry.channels) for entry in entries if entry.height]
    if not shapes:
        raise DataError(f"no image can be read; the first: {entries[0].error}")
    # The median, so that a few odd images do not decide for all.
    own = int(np.median([side for side, _ in shapes]))
    size = min(own, AUTO_SIZE_LIMIT) if image_size == "auto" else int(image_size)
    return size, max(count for _, count in shapes) if channels == "auto" else int(channels)


def _pack_path(packs: Path, entries: Sequence[Entry], size: int, channels: int) -> Path:
    content = "\n".join([f"{FORMAT} {size} {channels}", *(entry.sha for entry in entries if entry.sha)])
    return packs / f"{sha256(content.encode())}.npy"


def _build_pack(
    listing: Listing, entries: list[Entry], temp: Path, size: int, channels: int
) -> tuple[list[Entry], Path]:
    """Decodes all readable images into a pack; returns the completed entries and its path.

    The content's name is known only after decoding, so the file is written as ``temp`` first. The
    caller's lock makes that name ours alone; what a killed process left there is overwritten.
    """
    temp.parent.mkdir(parents=True, exist_ok=True)
    done: list[Entry] = []
    try:
        # Plain writes, no mapping: on a full disk a write fails with an error, a mapped page with SIGBUS.
        with temp.open("wb") as file:
            _write_header(file, (len(entries), channels, size, size))
            for entry, row in track(
                _decode_all(listing, entries, size, channels), "Decoding images", len(entries)
            ):
                done.append(entry)
                if row is not None:
                    file.write(row.tobytes())
            file.seek(0)
            _write_header(file, (sum(bool(entry.sha) for entry in done), channels, size, size))
            file.flush()
            os.fsync(file.fileno())
        pack = _pack_path(temp.parent, done, size, channels)
        temp.replace(pack)
    finally:
        temp.unlink(missing_ok=True)
    return done, pack


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """Writes a NumPy header of fixed length, so that a smaller count can be put in its place later."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _decode_all(
    listing: Listing, entries: Sequence[Entry], size: int, channels: int
) -> Iterator[tuple[Entry, Pixels | None]]:
    def one(pair: tuple[Sample, Entry]) -> tuple[Entry, Pixels | None]:
        sample, entry = pair
        if entry.error:
            return entry, None
        try:
            return _decode_one(listing.read, sample, entry, size, channels)
        except BadImage as bad:
            return _with_error(entry, bad), None

    pairs = zip(listing.samples, entries, strict=True)
    # Pillow and hashlib release the interpreter lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In chunks: the pool would otherwise decode ahead without bound.
        while chunk := list(itertools.islice(pairs, 256)):
            yield from pool.map(one, chunk)


def _decode_one(
    read: Callable[[Sample], Pixels], sample: Sample, entry: Entry, size: int, channels: int
) -> tuple[Entry, Pixels]:
    pixels = np.ascontiguousarray(read(sample))
    sha = sha256(f"{pixels.shape}".encode() + pixels.tobytes())
    return replace(entry, sha=sha), resize(pixels, size, channels)
