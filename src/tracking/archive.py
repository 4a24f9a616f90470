"""Copy an exported model that somebody else may have written, so that torch loads what was checked.

The file is opened once; every entry is checked and written into a new archive, a temporary file without a
name, and only that one is loaded. So neither a file that is replaced after the check nor one that torch's
reader understands differently can bring in anything else. An archive that two readers could understand
differently is refused, since torch writes none.
"""

import io
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import ClaimError
from ..utils.io import open_regular
from ..utils.zip_layout import check_layout
from .graph_check import check_graph

_KINDS = {
    "json": r"models/model\.json|data/weights/model_weights_config\.json"
    r"|data/constants/model_constants_config\.json",
    "tensor": r"data/weights/weight_[0-9]+|data/constants/tensor_[0-9]+",
    "inputs": r"data/sample_inputs/model\.pt",
    "text": r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id",
}
_ENTRY = re.compile(
    r"[\w.-]+/(?:" + "|".join(f"(?P<{kind}>{names})" for kind, names in _KINDS.items()) + ")", re.ASCII
)
_LARGEST = {"json": 100_000_000, "inputs": 1_000_000_000, "text": 1_000}
_DAMAGED = (ValueError, RuntimeError, EOFError, OverflowError, struct.error, zipfile.BadZipFile)


@contextmanager
def checked_copy(path: Path) -> Iterator[BinaryIO]:
    """Copy an archive of ``torch.export`` into a temporary file, checking every entry on the way.

    Tensors are copied in blocks, so that memory does not grow with the model.

    Args:
        path: The archive.

    Yields:
        The new archive, open at its start; it is deleted when the block ends.

    Raises:
        ClaimError: It is not an archive that this project writes, or something in it would be executed.
        OSError: It cannot be read, or the folder of temporary files cannot be written.
    """
    with open_regular(path) as file, tempfile.TemporaryFile() as copy:
        try:
            with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
                check_layout(file, old)
                if len({name.partition("/")[0] for name in old.namelist()}) != 1:
                    raise ValueError("it does not hold exactly one folder")
                for entry in old.infolist():
                    _copy(old, entry, _kind(entry), new)
            copy.seek(0)
        except _DAMAGED as error:
            raise ClaimError(
                f"{path} is not loaded, and nothing in it was executed, since it is not a model that this "
                f"project exported: {error}; restore the file from a backup, or train the model again"
            ) from None
        except OSError as error:
            with suppress(OSError):  # it tries once more to write what it could not
                copy.close()
            where = f"{path}, copied to {tempfile.gettempdir()}"
            raise OSError(error.errno, error.strerror, where) from None
        yield copy


def _kind(entry: zipfile.ZipInfo) -> str:
    match = _ENTRY.fullmatch(entry.filename)
    if match is None:
        raise ValueError(f"it holds a file {entry.filename!r}")
    return str(match.lastgroup)


def _copy(old: zipfile.ZipFile, entry: zipfile.ZipInfo, kind: str, new: zipfile.ZipFile) -> None:
    """Check and copy one entry; ``zipfile`` compares the checksum."""
    if entry.file_size > _LARGEST.get(kind, entry.file_size):
        raise ValueError(f"{entry.filename} is too large")
    fresh = zipfile.ZipInfo(entry.filename)
    fresh.file_size = entry.file_size
    with old.open(entry) as source, new.open(fresh, "w") as target:
        if kind == "tensor":
            shutil.copyfileobj(source, target, 1 << 20)
            return
        content = source.read()
        if kind == "json":
            check_graph(content)
        target.write(_plain_inputs(content) if kind == "inputs" else content)


def _plain_inputs(content: bytes) -> bytes:
    """Pickle the example inputs again: where torch cannot unpickle them safely, it does so unsafely."""
    import torch

    try:
        inputs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a damaged or hostile pickle raises errors of a dozen kinds
        raise ValueError("its example inputs are more than tensors and plain values") from None
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    return buffer.getvalue()
