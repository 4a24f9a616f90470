"""A PNG writer and reader of our own, to compare with; the reader takes 8 and 16 bits, not interlaced."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
_PALETTE = 3
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_SAMPLES = {colour: samples for samples, colour in _COLOUR.items()}


def write_png(
    path: Path,
    pixels: NDArray[Any],
    *chunks: tuple[bytes, bytes],
    bits: int | None = None,
    has_palette: bool = False,
    interlaced: bool = False,
) -> Path:
    """Write pixels ``(H, W)`` or ``(H, W, samples)`` of uint8 or uint16; chunks are put before them.

    Args:
        path: The file.
        pixels: Samples, or places in a palette.
        chunks: Kinds and contents.
        bits: Of each sample; those of the type, or 1, 2 or 4 of gray or of a palette.
        has_palette: Whether the pixels are places in the palette of a chunk ``PLTE``.
        interlaced: In seven passes (Adam7).
    """
    height, width, *samples = pixels.shape
    bits = bits or pixels.dtype.itemsize * 8
    colour = _PALETTE if has_palette else _COLOUR[samples[0] if samples else 1]
    passes = [pixels[y::down, x::right] for y, x, down, right in _ADAM7] if interlaced else [pixels]
    rows = b"".join(b"\0" + _packed(row, bits) for part in passes for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    whole = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(_SIGNATURE + b"".join(_chunk(*chunk) for chunk in whole))
    return path


def _packed(row: NDArray[Any], bits: int) -> bytes:
    if bits >= 8:
        return row.astype(row.dtype.newbyteorder(">")).tobytes()
    return np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_png(path: Path) -> NDArray[Any]:
    """Read pixels ``(H, W, samples)`` as they are stored."""
    content, at, packed = path.read_bytes(), len(_SIGNATURE), b""
    width = height = bits = colour = 0
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        data = content[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, bits, colour = struct.unpack_from(">IIBB", data)
        packed += data if kind == b"IDAT" else b""
        at += length + 12
    size = _SAMPLES[colour] * bits // 8
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    before, found = np.zeros(width * size, np.int64), []
    for row in rows:
        before = _unfiltered(int(row[0]), row[1:].astype(np.int64), before, size)
        found.append(before.astype(np.uint8).tobytes())
    return np.frombuffer(b"".join(found), f">u{bits // 8}").reshape(height, width, -1)


def _unfiltered(kind: int, row: NDArray[np.int64], above: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    left, corner = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for at in range(0, len(row), size):
        up = above[at : at + size]
        guess = left + up - corner
        near = [abs(guess - value) for value in (left, up, corner)]
        paeth = np.where(
            (near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], up, corner)
        )
        row[at : at + size] += (0 * left, left, up, (left + up) // 2, paeth)[kind]
        row[at : at + size] %= 256
        left, corner = row[at : at + size], up
    return row
