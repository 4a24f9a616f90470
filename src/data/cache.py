"""Decodes every image once: an index of what each file holds, and packs of resized uint8 pixels.

``index/{root}.npz`` maps (key, size, times) of a file to the hash of its pixels, so that a later
start opens no image. Of each modality, ``packs`` holds one array, named by the hashes of what is in it.
"""

import errno
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from ..utils.io import file_lock, sha256, sha256_of_lines
from ..utils.progress import bar, track
from .array_cache import GIGABYTE, NewPack, PackFolder
from .decode import Task, Workers, decode_again, decode_all, look_at_all
from .entries import FORMAT, Entries, join_entries
from .image_array import ImageArray
from .index import Index
from .npz import read_again
from .pixels import Pixels, Shown
from .samples import Listing, Sample

AUTO_SIZE_LIMIT = 224

_SILENT_WAIT = 2.0  # seconds


@dataclass(frozen=True)
class DecodedImages:
    """The readable images of a listing.

    Attributes:
        listing: What was decoded.
        pixels: The decoded images; black where an image could not be read.
        rows: int64 ``(R,)``, of each readable image its row in ``pixels``.
        samples: The readable samples, in the order of ``rows``.
        entries: What is known of each.
        bad: One message per image that could not be read.
    """

    listing: Listing
    pixels: ImageArray
    rows: NDArray[np.int64]
    samples: Sequence[Sample]
    entries: Entries
    bad: tuple[str, ...]


@dataclass(frozen=True)
class _Cache:
    """What is known of the files of one root, where pixels are, and who decodes."""

    index: Index
    packs: PackFolder
    workers: Workers


def decode_listings(
    listings: Sequence[Listing], config: DataConfig, cache_dir: Path, *, rehash: bool = False
) -> list[DecodedImages]:
    """Returns the decoded images of listings of one root, from the cache where it has them.

    All get the same size and channels. Several processes may call this at once: one decodes, the
    others wait and read. One that is killed leaves what it has decoded to the next.

    Args:
        listings: What to decode, one per modality.
        config: The data section.
        cache_dir: Folder of the cache.
        rehash: Decode and hash all files again, whatever the index says.

    Raises:
        DataError: No image can be read, or the cache cannot be written or is too small.
    """
    root = sha256(str(listings[0].root.resolve()).encode())[:16]
    path = cache_dir / "index" / f"{root}-v{FORMAT}.npz"
    packs = PackFolder(cache_dir / "packs", int(config.cache_gb * GIGABYTE))
    try:
        with _alone(path.with_suffix(".lock"), listings[0].root), Workers() as workers:
            cache = _Cache(Index.load(path), packs, workers)
            if rehash:
                for listing in listings:
                    cache.index.forget(listing.samples)
            before = [_look(listing, cache) for listing in listings]
            shown = _resolve_shown(join_entries(before), config)
            found = zip(listings, before, strict=True)
            return [_decoded(of, entries, cache, shown) for of, entries in found]
    except OSError as error:
        raise DataError(f"{cache_dir}: the cache of decoded images cannot be written: {error}") from None


@contextmanager
def _alone(lock: Path, root: Path) -> Iterator[None]:
    """Holds the lock of a root, and says so where that takes long."""
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(lock, _SILENT_WAIT))
        except Timeout:
            warn(f"waiting for another process that decodes the images of {root}")
            held.enter_context(file_lock(lock))
        yield


def _look(listing: Listing, cache: _Cache) -> Entries:
    """What is known of each file without decoding it."""
    entries = cache.index.look_up(listing.samples)
    new = np.flatnonzero(~entries.is_done).tolist()
    items = [(listing.samples[i], entry) for i, entry in zip(new, entries.pick(new), strict=True)]
    looked = cache.workers.map(partial(look_at_all, listing.header), items, in_memory=listing.in_memory)
    for i, entry in zip(new, track(looked, f"Looking at {listing.modality}", len(new)), strict=True):
        entries[i] = entry
    return entries


def _resolve_shown(entries: Entries, config: DataConfig) -> Shown:
    known = entries.rows[entries.rows["height"] > 0]
    if not len(known):
        raise _unreadable("no image", entries)
    # The median, so that a few odd images do not decide for all.
    own = int(np.median(np.maximum(known["height"], known["width"])))
    size = min(own, AUTO_SIZE_LIMIT) if config.image_size == "auto" else int(config.image_size)
    channels = int(known["channels"].max()) if config.channels == "auto" else int(config.channels)
    return Shown(size, channels, config.window, config.fit)


def _unreadable(what: str, entries: Entries) -> DataError:
    (first,) = entries.pick([0])
    return DataError(
        f"{what} can be read; the first: {first.error}{_remedy(first.error)}", public=f"{what} can be read"
    )


def _remedy(error: str) -> str:
    """What to do about a file that is not there; "" for another error."""
    path, _, reason = error.rpartition(": ")
    if reason != os.strerror(errno.ENOENT):
        return ""
    others = sorted(Path(path).parent.glob(f"{glob.escape(Path(path).name)}.*"))
    if others:
        return f"; {others[0].name} is there: name the files in the manifest with their endings"
    return "; the paths in a manifest start at its folder"


def _decoded(listing: Listing, entries: Entries, cache: _Cache, shown: Shown) -> DecodedImages:
    is_known = bool(entries.is_done.all())
    shape = (len(entries), shown.channels, shown.size, shown.size)
    pixels = cache.packs.find(_pack_name(entries, shown), shape) if is_known else None
    if pixels is None:
        pixels = _build_pack(listing, entries, cache, shown)
    pixels.decode_again = _decoder(listing, entries, shown)
    rows = np.flatnonzero(entries.has_pixels)
    is_whole = len(rows) == len(entries)
    return DecodedImages(
        listing,
        pixels,
        rows=rows,
        samples=listing.samples if is_whole else [listing.samples[row] for row in rows],
        entries=entries if is_whole else entries.take(rows),
        bad=() if is_whole else tuple(filter(None, entries.each(lambda shared: shared.error))),
    )


def _decoder(listing: Listing, entries: Entries, shown: Shown) -> Callable[[int], Pixels]:
    """Return what decodes an image of a listing again; it keeps no images in memory."""
    read, samples = read_again if listing.in_memory else listing.read, listing.samples

    def decode(row: int) -> Pixels:
        (entry,) = entries.pick([row])
        return decode_again(read, shown, samples[row], entry)

    return decode


def _pack_name(entries: Entries, shown: Shown) -> str:
    kind = f"{FORMAT} {shown.size} {shown.channels}"
    return sha256_of_lines(chain([kind], entries.seen_as(shown)))


def _build_pack(listing: Listing, entries: Entries, cache: _Cache, shown: Shown) -> ImageArray:
    """Make the pack of all readable images and open it; complete ``entries`` in place."""
    shape = (len(entries), shown.channels, shown.size, shown.size)
    with (
        cache.packs.new(cache.index.path.stem, shape) as pack,
        bar(f"Decoding {listing.modality}", len(entries)) as advance,
    ):
        for _ in _rows_at_hand(pack, entries, shown):
            advance("")
        is_bad = entries.where(lambda shared: shared.error)
        missing = [row for row in np.flatnonzero(~is_bad).tolist() if row not in pack.rows]
        tasks = [
            Task(listing.samples[row], entry, pack.place(row))
            for row, entry in zip(missing, entries.pick(missing), strict=True)
        ]
        work = partial(decode_all, listing.read, shown, pack.temp)
        decoded = cache.workers.map(work, tasks, in_memory=listing.in_memory)
        for row, entry in zip(missing, decoded, strict=True):
            entries[row] = entry
            pack.rows[row] = entry.seen_as(shown)
            cache.index.learn(listing.samples[row], entry)
            advance("")
            if cache.index.is_due:
                pack.save_rows()
                cache.index.save()
        if not entries.has_pixels.any():
            raise _unreadable(f"{listing.root}: none of {len(entries)} images", entries)
        cache.index.save()
        return pack.keep(_pack_name(entries, shown))


def _rows_at_hand(pack: NewPack, entries: Entries, shown: Shown) -> Iterator[int]:
    """Takes what was decoded before, here or for another pack; yields the rows that need no decoding."""
    seen = enumerate(entries.seen_as(shown))
    wanted = {row: pixels for (row, pixels), done in zip(seen, entries.is_done, strict=True) if done}
    pack.rows = {row: pixels for row, pixels in pack.rows.items() if wanted.get(row) == pixels}
    yield from pack.rows
    missing = {row: pixels for row, pixels in wanted.items() if pixels and row not in pack.rows}
    yield from pack.copy_from_others(missing)
