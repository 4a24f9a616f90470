"""Check that a zip file is unambiguous, as ``torch.save`` and ``torch.export.save`` write them.

A zip file describes its entries up to four times: in an end record, a central directory, local headers
and data descriptors. Readers use different ones of these, so that a malicious file could look harmless to
``zipfile`` and contain something else for torch's own reader.
"""

import struct
import zipfile
from typing import IO

_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTORS = (struct.Struct("<4s3L"), struct.Struct("<4sL2Q"))
_END, _END_64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_HAS_DESCRIPTOR, _UTF8 = 0x8, 0x800
_MOST = 0xFFFFFFFF  # marks a 32-bit field whose value is stored with 64 bits elsewhere


def check_layout(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Check that every reader finds the same entries in an archive as ``zipfile`` does.

    Args:
        file: The open file; its position changes.
        archive: The archive in that file.

    Raises:
        ValueError: An entry is compressed or duplicated, there are gaps between entries, or their
            descriptions disagree.
        struct.error: The file ends within a header.
    """
    position, names = 0, set[str]()
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename} is compressed")
        if entry.header_offset != position:
            raise ValueError(f"its entries do not follow one another at {entry.filename}")
        if entry.filename.lower() in names:  # torch's reader ignores case
            raise ValueError(f"it holds the file {entry.filename} twice")
        names.add(entry.filename.lower())
        position = _end_of_entry(file, entry)
    if position != archive.start_dir:
        raise ValueError("its entries and its central directory do not follow one another")
    file.seek(position)
    _check_end(file.read(), position, len(archive.infolist()))


def _end_of_entry(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Return where an entry ends, after comparing its own header with the central directory."""
    file.seek(entry.header_offset)
    header = _LOCAL.unpack(file.read(_LOCAL.size))
    flags, method, (crc, packed, size) = header[2], header[3], header[6:9]
    end: int = entry.header_offset + _LOCAL.size + sum(header[9:]) + entry.file_size
    has_descriptor = flags & _HAS_DESCRIPTOR
    listed = (entry.CRC, min(entry.file_size, _MOST), min(entry.file_size, _MOST))
    is_deferred = has_descriptor and (crc, packed, size) == (0, 0, 0)
    if (flags, method) != (entry.flag_bits, entry.compress_type) or flags & ~(_HAS_DESCRIPTOR | _UTF8):
        raise ValueError(f"{entry.filename} is described in two ways")
    if entry.filename != entry.orig_filename:  # zipfile drops what follows a NUL
        raise ValueError(f"it holds a file {entry.orig_filename!r}")
    if not is_deferred and (crc, packed, size) != listed:
        raise ValueError(f"{entry.filename} is given two sizes or checksums")
    if not has_descriptor:
        return end
    for layout in _DESCRIPTORS[entry.file_size > _MOST :]:
        file.seek(end)
        expected = layout.pack(b"PK\x07\x08", entry.CRC, entry.file_size, entry.file_size)
        if file.read(layout.size) == expected:
            return end + layout.size
    raise ValueError(f"{entry.filename} is given two sizes or checksums")


def _check_end(rest: bytes, start: int, count: int) -> None:
    """Check that nothing but one central directory and the records that describe it ends the archive."""
    ending, size = b"", len(rest) - _END.size
    if rest[size - _LOCATOR.size :].startswith(b"PK\x06\x07"):
        size -= _LOCATOR.size + _END_64.size
        versions = struct.unpack("<2H", rest[size + 12 : size + 16])
        ending = _END_64.pack(b"PK\x06\x06", 44, *versions, 0, 0, count, count, size, start)
        ending += _LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    few = min(count, 0xFFFF)
    ending += _END.pack(b"PK\x05\x06", 0, 0, few, few, min(size, _MOST), min(start, _MOST), 0)
    if rest[max(size, 0) :] != ending:
        raise ValueError("its end record does not describe its central directory")
