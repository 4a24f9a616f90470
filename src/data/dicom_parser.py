"""Read the elements of a DICOM file by pydicom, in bounded time and memory even if the file is malicious."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..utils.limits import DICOM_HEADER, DICOM_PARTS
from .pixels import ImageError, check_limit

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

_FRAMES_FROM = 0x52000000  # first tag of the per-frame descriptions, which precede the pixels
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_OVERLAY_BITS = tuple(0x60000102 + (number << 17) for number in range(16))
_PIXELS = (*_GROUPS, *_OVERLAY_BITS, "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData")
_FRAME_TAGS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}
_RATIO = 2
_SOME = 2**20
_PART = 8  # bytes of a tag with its length, by which each element and each item of a sequence starts
_J2K_SIZE = b"\xff\x4f\xff\x51"  # the markers SOC and SIZ
_JPEG_START, _JPEG_FRAMES = b"\xff\xd8", frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_PALETTE = 2**16


BARE_BYTES = 1024
# The first element is of group 2 or 8, and a SOP class of the standard is named soon, in either encoding.
_BARE = re.compile(
    rb"(?=[\x02\x08]\0.\0).*?(?:\x02\0\x02\0|\x08\0\x16\0)(?:UI..|..\0\0)1\.2\.840\.10008\.", re.DOTALL
)


class _DeflatedError(Exception):
    """pydicom reads the rest of the file at once, which it does only for deflated files."""


class _Bounded:
    """A file that limits how many bytes and elements pydicom may read.

    An empty item takes a hundred times its size in memory, and a length in the file may be wrong.
    """

    def __init__(self, path: Path, file: BinaryIO, pixel_bytes: int = 0) -> None:
        self.seek, self.tell = file.seek, file.tell
        self.name = str(path)
        self._read, self._pixel_bytes = file.read, pixel_bytes
        self._bytes = self._parts = 0
        self._most_bytes, self._most_parts = DICOM_HEADER.value + pixel_bytes, DICOM_PARTS.value

    def read(self, size: int = -1) -> bytes:
        """Read some bytes; raise an `ImageError` if an image of this size does not need so many."""
        if size < 0:
            raise _DeflatedError
        self._bytes += size
        self._parts += size == _PART
        if self._bytes > self._most_bytes or self._parts > self._most_parts:
            self.check()
        return self._read(size)

    def check(self) -> None:
        """Raise the `ImageError` for an exceeded limit, also after pydicom has replaced it by its own."""
        check_limit(self.name, DICOM_HEADER, self._bytes - self._pixel_bytes)
        check_limit(self.name, DICOM_PARTS, self._parts)


class DicomFile:
    """An open DICOM file whose elements are read in two steps: those before the pixels, then the pixels."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._source = _Bounded(path, file)
        self._deflated_at: int | None = None

    def read_header(self, keywords: tuple[str, ...]) -> "Dataset":
        """Read some elements that precede the pixels and the descriptions of single frames.

        Raises:
            ImageError: The header exceeds a limit.
        """
        from pydicom.filereader import _read_file_meta_info, read_dataset, read_partial, read_preamble

        tags, source = _tags(keywords), self._source
        has_no_preamble = is_bare(self._file.read(BARE_BYTES))
        source.seek(0)
        try:
            found = read_partial(source, _at_frames, specific_tags=tags, force=has_no_preamble)  # type: ignore[arg-type]
            _complete_syntax(found)
            return found
        except _DeflatedError:
            source.seek(0)
        except OSError:
            source.check()
            raise
        read_preamble(source, False)  # type: ignore[arg-type]
        meta = _read_file_meta_info(source)  # type: ignore[arg-type]
        self._deflated_at = source.tell()
        self._source = source = _Bounded(self._path, io.BytesIO(self._inflated(DICOM_HEADER.value)))
        dataset = read_dataset(source, False, True, stop_when=_at_frames, specific_tags=tags)  # type: ignore[arg-type]
        check_limit(self._path, DICOM_HEADER, source.tell())  # beyond what was inflated
        dataset.file_meta = meta
        return dataset

    def add_pixels(self, dataset: "Dataset", pixel_bytes: int) -> frozenset[str]:
        """Read the pixels and the functional groups, and add them to what `read_header` returned.

        Args:
            dataset: The result of `read_header`.
            pixel_bytes: Size of the decoded pixels.

        Returns:
            Which elements are from functional groups.

        Raises:
            ImageError: The file is larger than its pixels and a header.
        """
        from pydicom.filereader import read_dataset

        file, at = self._file, self._source.tell()
        most = _RATIO * pixel_bytes  # compressed pixels may be a little longer, or padded
        if self._deflated_at is not None:
            inflated = self._inflated(DICOM_HEADER.value + most + 1)
            check_limit(self._path, DICOM_HEADER, len(inflated) - most)
            file = io.BytesIO(inflated)
        source = _Bounded(self._path, file, most)
        source.seek(at)
        implicit, little = dataset.original_encoding
        rest = read_dataset(source, bool(implicit), bool(little), specific_tags=_tags(_PIXELS))  # type: ignore[arg-type]
        dataset.update(rest)
        return frozenset(self._add_functional_groups(dataset))

    def first_item(self, dataset: "Dataset", keyword: str) -> "Dataset | None":
        """Return the first item of a sequence, None if it is missing or empty.

        pydicom parses a sequence of known length only on access, without a limit, so its items are
        counted here first. A sequence within an item is counted when it is asked for in turn.

        Raises:
            ImageError: The sequence exceeds a limit.
        """
        from pydicom.filereader import read_sequence

        if keyword not in dataset:
            return None
        raw: Any = dataset.get_item(keyword)
        if isinstance(raw.value, bytes) and raw.value:  # not parsed yet
            source = _Bounded(self._path, io.BytesIO(raw.value))
            implicit = raw.is_implicit_VR or raw.VR == "UN"
            try:
                read_sequence(source, implicit, raw.is_little_endian, len(raw.value), "iso8859")  # type: ignore[arg-type]
            except OSError:
                source.check()
                raise
        sequence = dataset[keyword].value
        return sequence[0] if sequence else None

    def _add_functional_groups(self, dataset: "Dataset") -> Iterator[str]:
        """Copy slope, intercept and window of the only frame of an enhanced object to the top level.

        Source: DICOM PS3.3, C.7.6.16: a functional group is either shared or given per frame.
        """
        groups = [group for group in (self.first_item(dataset, keyword) for keyword in _GROUPS) if group]
        for keyword, tags in _FRAME_TAGS.items():
            found = [item for group in groups if (item := self.first_item(group, keyword)) is not None]
            if not found:
                continue
            for tag in tags:
                dataset.pop(tag, None)
                if tag in found[-1]:
                    dataset[tag] = found[-1].get_item(tag)
                    yield tag

    def _inflated(self, most: int) -> bytes:
        """Inflate at most so many bytes, where pydicom would inflate the whole file."""
        self._file.seek(self._deflated_at or 0)
        inflater, found = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
        while len(found) < most and (some := inflater.unconsumed_tail or self._file.read(_SOME)):
            found += inflater.decompress(some, min(_SOME, most - len(found)))
        return bytes(found)


def is_bare(start: bytes) -> bool:
    """Return whether a file starts with the elements of a DICOM object, without the preamble of Part 10."""
    return _BARE.match(start) is not None


def _complete_syntax(dataset: "Dataset") -> None:
    """Set a missing transfer syntax to the uncompressed one that fits the encoding of the file."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


@cache
def _tags(keywords: tuple[str | int, ...]) -> "list[BaseTag | int]":
    from pydicom.tag import Tag

    return [Tag(keyword) for keyword in keywords]


def _at_frames(tag: int, _vr: str | None, _length: int) -> bool:
    return int(tag) >= _FRAMES_FROM  # as an int: pydicom compares its own tags slowly


def has_embedded_overlay(dataset: "Dataset") -> bool:
    """Return whether unused bits of the pixels hold an overlay (retired in DICOM 2004)."""
    return any(tag in dataset and dataset[tag].value for tag in _OVERLAY_BITS)


def check_pixel_data(path: Path, dataset: "Dataset", pixel_bytes: int) -> None:
    """Refuse compressed pixels that would become a larger image than the header describes.

    Raises:
        ImageError: They are longer than the decoded image, or their own header describes a larger image.
    """
    from pydicom.encaps import get_frame

    data: bytes = dataset.PixelData
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if dataset["PixelData"].is_undefined_length:
            raise ImageError(f"{path}: its pixels are compressed, but it has no transfer syntax; convert it")
        return
    if len(data) > _RATIO * pixel_bytes + _SOME:
        raise ImageError(
            f"{path}: holds {len(data):,} bytes of compressed pixels for an image of {pixel_bytes:,} bytes"
        )
    width, height, samples = _coded_size(get_frame(data, 0, number_of_frames=1))
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if width * height * samples > rows * columns * int(dataset.SamplesPerPixel):
        raise ImageError(
            f"{path}: its header says {columns} x {rows} pixels, its compressed image {width} x {height} "
            f"with {samples} samples each"
        )


def _coded_size(code: bytes) -> tuple[int, int, int]:
    """Return width, height and samples of a JPEG, JPEG-LS or JPEG 2000 image; zeros for another code."""
    if code[:2] == _JPEG_START:
        at = 2
        while at + 9 < len(code) and code[at + 1] not in _JPEG_FRAMES:
            at += 1 if code[at + 1] == 0xFF else 2 + struct.unpack_from(">H", code, at + 2)[0]
        height, width, samples = struct.unpack_from(">2HB", code, at + 5)
        return width, height, samples
    at = code.find(_J2K_SIZE, 0, _SOME)
    if at < 0:
        return 0, 0, 0
    right, bottom, left, top = struct.unpack_from(">4I", code, at + 8)
    return right - left, bottom - top, struct.unpack_from(">H", code, at + 40)[0]


def check_palette(path: Path, dataset: "Dataset") -> None:
    """Raise an `ImageError` if a few bytes of a segmented palette expand to too many colors."""
    for color in ("Red", "Green", "Blue", "Alpha"):
        data: bytes | None = dataset.get(f"Segmented{color}PaletteColorLookupTableData")
        if data is None:
            continue
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        size = 1 if dataset.RedPaletteColorLookupTableDescriptor[2] == 8 else 2
        words = np.frombuffer(data[: len(data) // size * size], f"{order}u{size}").tolist()
        if _expanded(words) > _PALETTE:
            raise ImageError(f"{path}: its palette has more than {_PALETTE:,} colors")


def _expanded(words: list[int]) -> int:
    """Return the minimum number of entries of a segmented look-up table (DICOM PS3.3, C.7.9.2)."""
    at = total = 0
    while at + 1 < len(words):
        opcode, count = words[at], words[at + 1]
        total += count
        at += 2 + {0: count, 1: 1}.get(opcode, 2)
    return total
