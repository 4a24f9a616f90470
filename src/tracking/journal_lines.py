"""Lines of JSON with a checksum, so that a flipped byte on disk is noticed."""

import json
import re
import zlib
from typing import Any

_SUMMED = re.compile(rb'\{"crc": "([0-9a-f]{8})", (.*)', re.DOTALL)


def encode(record: dict[str, Any]) -> bytes:
    """Return a record as one line."""
    rest = json.dumps(record).encode()[1:]
    return b'{"crc": "%08x", ' % zlib.crc32(rest) + rest + b"\n"


def has_sum(line: bytes) -> bool:
    """Return whether a line, without its line feed, carries a checksum that is right."""
    found = _SUMMED.fullmatch(line)
    return found is not None and zlib.crc32(found[2]) == int(found[1], 16)


def decode(line: bytes, *, needs_sum: bool) -> dict[str, Any] | None:
    """Return a line's values, or None if it is damaged.

    Args:
        line: The line, without its line feed.
        needs_sum: Whether it must carry a checksum; earlier versions wrote none.
    """
    if not has_sum(line) and (needs_sum or _SUMMED.fullmatch(line)):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
