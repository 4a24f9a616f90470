"""Decode every image once and cache the result.

``index/{root}.npz`` maps a file (key, size, times) to the hash of its pixels, so that a later start opens no
image. ``packs/`` holds one array of resized uint8 images per modality, named by the hashes of its images.
"""

import errno
import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.cli import warn
from ..utils.config import DataConfig
from ..utils.console import bar, track
from ..utils.io import file_lock, sha256, sha256_of_lines
from .array_cache import GIGABYTE, ArrayCache, ArrayWriter
from .decode import Task, Workers, decode_again, decode_all, read_headers
from .file_index import FileIndex
from .file_info import FORMAT, FileTable, concatenate_tables
from .image_array import ImageArray
from .listing import Listing, Sample
from .npz import read_again
from .pixels import ImageFormat

AUTO_SIZE_LIMIT = 224

_SILENT_WAIT = 2.0  # seconds


@dataclass(frozen=True)
class DecodedListing:
    """The readable images of a listing.

    Attributes:
        listing: The listing that was decoded.
        pixels: The decoded images, black for unreadable ones.
        rows: int64 ``(R,)``, row of each readable image in ``pixels``.
        samples: The readable samples, in the order of ``rows``.
        table: Information on their files.
        bad: One message per image that could not be read.
    """

    listing: Listing
    pixels: ImageArray
    rows: NDArray[np.int64]
    samples: Sequence[Sample]
    table: FileTable
    bad: tuple[str, ...]


@dataclass(frozen=True)
class _Cache:
    """Index, arrays and worker processes for the files of one root."""

    index: FileIndex
    arrays: ArrayCache
    workers: Workers


def decode_listings(
    listings: Sequence[Listing], config: DataConfig, cache_dir: Path, *, rehash: bool = False
) -> list[DecodedListing]:
    """Return the decoded images of listings of one root, from the cache if possible.

    All images get the same size and channels. Several processes may call this at the same time: one decodes,
    the others wait. After a kill, the next process continues.

    Args:
        listings: One per modality.
        config: The data section.
        cache_dir: Folder of the cache.
        rehash: Decode and hash all files again.

    Raises:
        DataError: No image can be read, or the cache cannot be written or is too small.
    """
    root = sha256(str(listings[0].root.resolve()).encode())[:16]
    path = cache_dir / "index" / f"{root}-v{FORMAT}.npz"
    arrays = ArrayCache(cache_dir / "packs", int(config.cache_gb * GIGABYTE))
    try:
        with ExitStack() as held:
            _lock(held, path.with_suffix(".lock"), listings[0].root)
            cache = _Cache(FileIndex.load(path), arrays, held.enter_context(Workers()))
            if rehash:
                for listing in listings:
                    cache.index.forget(listing.samples)
            before = [_read_headers(listing, cache) for listing in listings]
            image_format = _resolve_format(concatenate_tables(before), config)
            found = zip(listings, before, strict=True)
            return [_decode_listing(of, table, cache, image_format) for of, table in found]
    except OSError as error:
        raise DataError(f"{cache_dir}: the cache of decoded images cannot be written: {error}") from None


def _lock(held: ExitStack, lock: Path, root: Path) -> None:
    """Hold the lock of a root; warn if waiting takes long."""
    try:
        held.enter_context(file_lock(lock, _SILENT_WAIT))
    except Timeout:
        warn(f"waiting for another process that decodes the images of {root}")
        held.enter_context(file_lock(lock))


def _read_headers(listing: Listing, cache: _Cache) -> FileTable:
    """Return the information of each file that needs no decoding."""
    table = cache.index.look_up(listing.samples)
    new = np.flatnonzero(~table.is_done).tolist()
    items = [(listing.samples[i], info) for i, info in zip(new, table.pick(new), strict=True)]
    looked = cache.workers.map(partial(read_headers, listing.header), items, in_memory=listing.in_memory)
    for i, info in zip(new, track(looked, f"Reading headers of {listing.modality}", len(new)), strict=True):
        table[i] = info
    return table


def _resolve_format(table: FileTable, config: DataConfig) -> ImageFormat:
    known = table.rows[table.rows["height"] > 0]
    if not len(known):
        raise _unreadable("no image", table)
    # The median is robust against a few unusual images.
    own = int(np.median(np.maximum(known["height"], known["width"])))
    size = min(own, AUTO_SIZE_LIMIT) if config.image_size == "auto" else int(config.image_size)
    channels = int(known["channels"].max()) if config.channels == "auto" else int(config.channels)
    return ImageFormat(size, channels, config.window, config.fit)


def _unreadable(what: str, table: FileTable) -> DataError:
    (first,) = table.pick([0])
    error = first.shared.error
    return DataError(f"{what} can be read; the first: {error}{_remedy(error)}", public=f"{what} can be read")


def _remedy(error: str) -> str:
    """Return advice for a missing file, "" for another error."""
    path, _, reason = error.rpartition(": ")
    if reason != os.strerror(errno.ENOENT):
        return ""
    others = sorted(Path(path).parent.glob(f"{glob.escape(Path(path).name)}.*"))
    if others:
        return f"; {others[0].name} is there: name the files in the manifest with their endings"
    return "; the paths in a manifest start at its folder"


def _decode_listing(
    listing: Listing, table: FileTable, cache: _Cache, image_format: ImageFormat
) -> DecodedListing:
    is_known = bool(table.is_done.all())
    shape = (len(table), image_format.channels, image_format.size, image_format.size)
    pixels = cache.arrays.find(_array_name(table, image_format), shape) if is_known else None
    if pixels is None:
        pixels = _build_array(listing, table, cache, image_format)
    rows = np.flatnonzero(table.has_pixels)
    is_whole = len(rows) == len(table)
    # Lambdas keep what they use: this one must not keep `listing.read`, which may hold images in memory.
    read, samples = read_again if listing.in_memory else listing.read, listing.samples
    pixels.decode_again = lambda row: decode_again(read, image_format, samples[row], next(table.pick([row])))
    return DecodedListing(
        listing,
        pixels,
        rows=rows,
        samples=samples if is_whole else [samples[row] for row in rows],
        table=table if is_whole else table.take(rows),
        bad=() if is_whole else tuple(filter(None, table.each(lambda shared: shared.error))),
    )


def _array_name(table: FileTable, image_format: ImageFormat) -> str:
    kind = f"{FORMAT} {image_format.size} {image_format.channels}"
    return sha256_of_lines(chain([kind], table.pixel_keys(image_format)))


def _build_array(listing: Listing, table: FileTable, cache: _Cache, image_format: ImageFormat) -> ImageArray:
    """Build and open the array of all images; complete ``table`` in place."""
    shape = (len(table), image_format.channels, image_format.size, image_format.size)
    with (
        cache.arrays.new(cache.index.path.stem, shape) as writer,
        bar(f"Decoding {listing.modality}", len(table)) as advance,
    ):
        for _ in _reuse_rows(writer, table, image_format):
            advance("")
        is_bad = table.where(lambda shared: shared.error)
        missing = [row for row in np.flatnonzero(~is_bad).tolist() if row not in writer.rows]
        tasks = [
            Task(listing.samples[row], info, writer.place(row))
            for row, info in zip(missing, table.pick(missing), strict=True)
        ]
        work = partial(decode_all, listing.read, image_format, writer.temp)
        decoded = cache.workers.map(work, tasks, in_memory=listing.in_memory)
        for row, info in zip(missing, decoded, strict=True):
            table[row] = info
            writer.rows[row] = info.pixel_key(image_format)
            cache.index.learn(listing.samples[row], info)
            advance("")
            if cache.index.is_due:
                writer.save_rows()
                cache.index.save()
        if not table.has_pixels.any():
            raise _unreadable(f"{listing.root}: none of {len(table)} images", table)
        cache.index.save()
        return writer.keep(_array_name(table, image_format))


def _reuse_rows(writer: ArrayWriter, table: FileTable, image_format: ImageFormat) -> Iterator[int]:
    """Reuse rows that were decoded before, here or in another array; yield these rows."""
    seen = enumerate(table.pixel_keys(image_format))
    wanted = {row: pixels for (row, pixels), done in zip(seen, table.is_done, strict=True) if done}
    writer.rows = {row: pixels for row, pixels in writer.rows.items() if wanted.get(row) == pixels}
    yield from writer.rows
    missing = {row: pixels for row, pixels in wanted.items() if pixels and row not in writer.rows}
    yield from writer.copy_from_others(missing)
