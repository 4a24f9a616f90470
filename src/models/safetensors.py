"""Read ``.safetensors`` files: a JSON header and raw bytes, which cannot contain code."""

import json
import math
import os
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..utils.limits import SAFETENSORS_HEADER

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_METADATA = "__metadata__"
_LENGTH = 8  # bytes of the header's length, little-endian
_DIMENSIONS = 16


def read_safetensors(file: BinaryIO) -> dict[str, Tensor]:
    """Read all tensors of an open file, starting at its beginning.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not such a file, is truncated, or its header does not describe its bytes exactly.
    """
    rest = os.fstat(file.fileno()).st_size - _LENGTH
    length = int.from_bytes(file.read(_LENGTH), "little")
    if not 2 <= length <= rest:
        raise ValueError("its first 8 bytes are not the length of a header inside the file")
    if excess := SAFETENSORS_HEADER.excess(length):
        raise ValueError(f"refused as too large: {excess}")
    tensors = _described(file.read(length), rest - length)
    return {name: _read(file, name, *described) for name, described in tensors.items()}


def _described(header: bytes, size: int) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Return dtype and shape of each tensor in the order of their bytes, which must have no gaps."""
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    entries.pop(_METADATA, None)
    tensors = {name: _entry(name, entry) for name, entry in entries.items()}
    in_order = sorted(tensors.items(), key=lambda item: item[1][:2])
    end = 0
    for name, (start, stop, _, _) in in_order:
        if start != end:
            raise ValueError(f"the bytes of {name[:100]!r} begin at {start} and not at {end}")
        end = stop
    if end != size:
        raise ValueError(f"its header describes {end} bytes of tensors, and {size} follow")
    return {name: (dtype, shape) for name, (_, _, dtype, shape) in in_order}


def _entry(name: str, entry: Any) -> tuple[int, int, torch.dtype, list[int]]:  # noqa: ANN401
    """Return start, end, dtype and shape of one tensor."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:100]!r} must have exactly the keys dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        kind = str(entry["dtype"])[:20]
        raise ValueError(f"{name[:100]!r} is of the type {kind}; {', '.join(_DTYPES)} can be read")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_are_counts(shape) and _are_counts(offsets)) or len(offsets) != 2:
        raise ValueError(f"shape or data_offsets of {name[:100]!r} are not lists of whole numbers")
    if len(shape) > _DIMENSIONS or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the shape of {name[:100]!r} does not fit its {offsets[1] - offsets[0]} bytes")
    return offsets[0], offsets[1], dtype, shape


def _are_counts(numbers: object) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key in its header")
    return found


def _read(file: BinaryIO, name: str, dtype: torch.dtype, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    data = bytearray(count * dtype.itemsize)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError(f"it ends within {name[:100]!r}")
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
