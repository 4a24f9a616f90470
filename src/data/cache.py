"""Decodes every image once: an index of what each file holds, and packs of resized uint8 pixels.

``index/{root}.json`` maps (key, size, times) of a file to the hash of its pixels, so that a later
start opens no image. Of each modality, ``packs`` holds one array, named by the hashes of what is in it.
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.data.images import BadImage, Pixels, Range, applied_window, resize, to_8_bits
from src.data.packs import GIGABYTE, PackFolder
from src.data.samples import Listing, Sample
from src.errors import DataError
from src.utils.config import DataConfig
from src.utils.io import atomic_write_text, file_lock, sha256
from src.utils.progress import track

FORMAT = 2
"""Part of every name in the cache: raise it when decoding, hashing or resizing changes."""

AUTO_SIZE_LIMIT = 224

_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index knows of one file: its state on disk, and what its pixels were found to be.

    Nothing here depends on the settings: the window is chosen later.

    Attributes:
        size: Bytes of the file.
        mtime_ns: When its content was changed.
        ctime_ns: When it was changed in any way: a file that takes another's place keeps its ``mtime``.
        height: Of the image.
        width: Of the image.
        channels: Of the image, 1 or 3.
        patient: Hash of the patient that the file itself names, empty without.
        sha: SHA-256 of the pixels, empty where ``error`` says why there are none.
        observed: Lowest and highest value.
        full: What the values could be, None for plain 8 bits.
        own: The window that the file asks for.
        error: Why it cannot be read.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    height: int = 0
    width: int = 0
    channels: int = 0
    patient: str = ""
    sha: str = ""
    observed: Range | None = None
    full: Range | None = None
    own: Range | None = None
    error: str = ""

    @classmethod
    def from_row(cls, row: list[object]) -> "Entry":
        """The entry that a row of the index describes."""
        return cls(*(tuple(cell) if isinstance(cell, list) else cell for cell in row))  # type: ignore[arg-type]


@dataclass(frozen=True)
class DecodedImages:
    """The readable images of a listing.

    Attributes:
        listing: What was decoded.
        pixels: uint8 ``(N, C, S, S)``, mapped from disk.
        samples: The N samples, in the order of ``pixels``.
        entries: What is known of each.
        bad: One message per image that could not be read.
    """

    listing: Listing
    pixels: NDArray[np.uint8]
    samples: tuple[Sample, ...]
    entries: tuple[Entry, ...]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class _Shown:
    """How images are seen: side, channels, and the window that the settings ask for."""

    size: int
    channels: int
    window: Range | None


@dataclass(frozen=True)
class _Cache:
    """What is known of the files of one root, where that is kept, and where pixels are."""

    index: dict[str, Entry]
    index_path: Path
    packs: PackFolder

    def learn(self, samples: Sequence[Sample], entries: Sequence[Entry]) -> None:
        """Adds to the index, also on disk."""
        self.index.update(zip((sample.key for sample in samples), entries, strict=True))
        rows = {key: astuple(entry) for key, entry in self.index.items()}
        atomic_write_text(self.index_path, json.dumps(rows))


def decode_listings(
    listings: Sequence[Listing], config: DataConfig, cache_dir: Path, *, rehash: bool = False
) -> list[DecodedImages]:
    """Returns the decoded images of listings of one root, from the cache where it has them.

    All get the same size and channels. Several processes may call this at once: one decodes, the
    others wait and read.

    Args:
        listings: What to decode, one per modality.
        config: The data section.
        cache_dir: Folder of the cache.
        rehash: Decode and hash all files again, whatever the index says.

    Raises:
        DataError: No image can be read, or the cache cannot be written or is too small.
    """
    root = sha256(str(listings[0].root.resolve()).encode())[:16]
    path = cache_dir / "index" / f"{root}-v{FORMAT}.json"
    packs = PackFolder(cache_dir / "packs", int(config.cache_gb * GIGABYTE))
    try:
        with file_lock(path.with_suffix(".lock")):
            cache = _Cache(_read_index(path), path, packs)
            if rehash:
                for key in (sample.key for listing in listings for sample in listing.samples):
                    cache.index.pop(key, None)
            before = [_look(listing, cache.index) for listing in listings]
            shown = _resolve_shown([entry for entries in before for entry in entries], config)
            return [_decode(of, entries, cache, shown) for of, entries in zip(listings, before, strict=True)]
    except OSError as error:
        raise DataError(f"{cache_dir}: the cache of decoded images cannot be written: {error}") from None


def _read_index(path: Path) -> dict[str, Entry]:
    try:
        return {key: Entry.from_row(row) for key, row in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        return {}  # damaged: it is only a memory of what can be computed again


def _look(listing: Listing, index: dict[str, Entry]) -> list[Entry]:
    """The index's entry of each file that is unchanged, else one with the header only."""
    return [_entry_before_decoding(listing, sample, index) for sample in listing.samples]


def _entry_before_decoding(listing: Listing, sample: Sample, index: dict[str, Entry]) -> Entry:
    try:
        state = sample.file.stat()
    except OSError as gone:
        return Entry(_UNKNOWN, 0, 0, error=f"{sample.file}: {gone.strerror}")
    known = index.get(sample.key)
    fresh = Entry(state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if known is not None and astuple(known)[:3] == astuple(fresh)[:3]:
        return known
    try:
        header = listing.header(sample)
    except BadImage as bad:
        return _with_error(fresh, bad)
    # Hashed, for the index need not know who the patient is, only whose images belong together.
    patient = sha256(f"patient {header.patient}".encode()) if header.patient else ""
    return replace(fresh, height=header.height, width=header.width, channels=header.channels, patient=patient)


def _with_error(entry: Entry, bad: BadImage) -> Entry:
    # What may be readable next time gets a size that no file has, so that the index does not match.
    return replace(entry, size=entry.size if bad.lasting else _UNKNOWN, sha="", error=str(bad))


def _resolve_shown(entries: Sequence[Entry], config: DataConfig) -> _Shown:
    shapes = [(max(entry.height, entry.width), entry.channels) for entry in entries if entry.height]
    if not shapes:
        raise _unreadable("no image", entries[0])
    # The median, so that a few odd images do not decide for all.
    own = int(np.median([side for side, _ in shapes]))
    size = min(own, AUTO_SIZE_LIMIT) if config.image_size == "auto" else int(config.image_size)
    channels = max(count for _, count in shapes) if config.channels == "auto" else int(config.channels)
    return _Shown(size, channels, config.window)


def _unreadable(what: str, first: Entry) -> DataError:
    return DataError(f"{what} can be read; the first: {first.error}", public=f"{what} can be read")


def _decode(listing: Listing, entries: list[Entry], cache: _Cache, shown: _Shown) -> DecodedImages:
    is_known = all(entry.sha or entry.error for entry in entries)
    pixels = cache.packs.find(_pack_name(entries, shown)) if is_known else None
    if pixels is None:
        entries, pixels = _build_pack(listing, entries, cache, shown)
        cache.learn(listing.samples, entries)
    good = [i for i, entry in enumerate(entries) if entry.sha]
    return DecodedImages(
        listing,
        pixels,
        samples=tuple(listing.samples[i] for i in good),
        entries=tuple(entries[i] for i in good),
        bad=tuple(entry.error for entry in entries if entry.error),
    )


def _pack_name(entries: Sequence[Entry], shown: _Shown) -> str:
    lines = [f"{FORMAT} {shown.size} {shown.channels}"]
    lines += [f"{e.sha} {applied_window(e.own, e.full, shown.window)}" for e in entries if e.sha]
    return sha256("\n".join(lines).encode())


def _build_pack(
    listing: Listing, entries: list[Entry], cache: _Cache, shown: _Shown
) -> tuple[list[Entry], NDArray[np.uint8]]:
    """Decodes all readable images into a pack; returns the completed entries and the mapped pack."""
    done: list[Entry] = []
    shape = (len(entries), shown.channels, shown.size, shown.size)
    with cache.packs.new(cache.index_path.stem, shape) as pack:
        decoded = _decode_all(listing, entries, shown)
        for entry, image in track(decoded, f"Decoding {listing.modality}", len(entries)):
            done.append(entry)
            if image is not None:
                pack.add(image)
        if not pack.count:
            raise _unreadable(f"{listing.root}: none of {len(done)} images", done[0])
        return done, pack.keep(_pack_name(done, shown))


def _decode_all(
    listing: Listing, entries: Sequence[Entry], shown: _Shown
) -> Iterator[tuple[Entry, Pixels | None]]:
    def one(pair: tuple[Sample, Entry]) -> tuple[Entry, Pixels | None]:
        sample, entry = pair
        if entry.error:
            return entry, None
        try:
            return _decode_one(listing, sample, entry, shown)
        except BadImage as bad:
            return _with_error(entry, bad), None

    pairs = zip(listing.samples, entries, strict=True)
    # Pillow, NumPy and hashlib release the interpreter lock, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In chunks: the pool would otherwise decode ahead without bound.
        while chunk := list(itertools.islice(pairs, 256)):
            yield from pool.map(one, chunk)


def _decode_one(listing: Listing, sample: Sample, entry: Entry, shown: _Shown) -> tuple[Entry, Pixels]:
    picture = listing.read(sample)
    entry = replace(
        entry,
        sha=sha256(picture.content),
        observed=(float(picture.values.min()), float(picture.values.max())),
        full=picture.full,
        own=picture.own,
    )
    return entry, resize(to_8_bits(picture, shown.window), shown.size, shown.channels)
