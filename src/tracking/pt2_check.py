"""Check an exported model from an untrusted source, and copy it so that torch loads what was checked.

The file is opened once; every entry is checked and written into a new archive, a temporary file without a
name, and only that one is loaded. So neither a file that is replaced after the check nor one that torch's
reader understands differently can bring in anything else. An archive that two readers could understand
differently is refused, since torch writes none.

``torch.export.load`` evaluates shape expressions, executes guards, generates Python from names, and looks
operators up by attribute, and operators such as ``aten.from_file`` write files when the graph runs. So
every string in the JSON must be a plain name, the few that are more must follow the grammar of what this
project exports, and an operator must compute with tensors only. Everything else is refused.
"""

import ast
import io
import json
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ClaimError
from ..utils.io import open_regular
from ..utils.zip_check import check_layout

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


_PLAIN = re.compile(r"[\w.+-]*")
_OPERATOR = re.compile(
    # Of torch's internal operators, which check their input less, only the one that exports contain.
    r"torch\.ops\.aten\.(?!(?:from_file|save)\.)(?:_assert_tensor_metadata|[a-z]\w*)\.[a-zA-Z]\w*"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
_WORD = re.compile(r"[a-z_]*|[A-Za-z, ]+->[A-Za-z ]*")  # a mode of an operator, or an equation of einsum
_PAYLOAD = re.compile(r"(?:weight|tensor)_[0-9]+")
_COMMENTS = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"}
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_TREE_CONTEXT = re.compile(r'null|\[("\w*"(, "\w*")*)?\]')
_LONGEST = 2_000
_NODES = {"Expression", "Call", "Name", "Load", "keyword", "Constant", "BinOp", "UnaryOp", "USub"}
_NODES |= {"Add", "Sub", "Mult", "FloorDiv", "Mod"}
_FUNCTIONS = {"Symbol", "Integer", "Mul", "Add", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv"}


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
            _check_graph(content)
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


def _check_graph(content: bytes) -> None:
    """Reject a JSON file of an archive that contains anything torch could execute."""
    try:
        _check(json.loads(content.decode()))
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _check(value: Any, key: str = "") -> None:  # noqa: ANN401 -- any JSON
    if isinstance(value, dict):
        for name, below in value.items():
            if not _PLAIN.fullmatch(name):
                raise ValueError(f"{name[:80]!r} is not a name")
            if name == "use_pickle" and below is not False:
                raise ValueError("it brings pickled tensors")
            if name == "guards_code" and below not in ([], None):
                raise ValueError("it brings guards as code")
            if name == "metadata":
                _check_comments(below)
            else:
                _check(below, name)
    elif isinstance(value, list):
        for below in value:
            _check(below, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_comments(value: Any) -> None:  # noqa: ANN401 -- any JSON
    """Where a node came from: free text that nothing evaluates, and no part of the graph by that name."""
    is_text = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if not is_text or not set(value) <= _COMMENTS:
        raise ValueError("the metadata of a node is more than comments")


def _check_text(text: str, key: str) -> None:
    pattern = {"target": _OPERATOR, "as_operator": _OPERATOR, "as_string": _WORD, "path_name": _PAYLOAD}
    if key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        if text:
            _check_structure(text)
    elif not pattern.get(key, _PLAIN).fullmatch(text):
        raise ValueError(f"{key} is {text[:80]!r}")


def _check_expression(text: str) -> None:
    """Sizes only: symbols, whole numbers, and arithmetic whose result cannot grow without bound."""
    try:
        tree = ast.parse(text[:_LONGEST], mode="eval")
    except SyntaxError:
        raise ValueError(f"a tensor size is not a plain arithmetic expression: {text[:80]!r}") from None
    for node in ast.walk(tree):
        is_known = type(node).__name__ in _NODES
        if isinstance(node, ast.Constant):
            is_known = isinstance(node.value, int) or bool(re.fullmatch(r"[a-z]+\d+", str(node.value)))
        if isinstance(node, ast.Call):
            is_known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        if isinstance(node, ast.Name):
            is_known = node.id in _FUNCTIONS or bool(re.fullmatch(r"[a-z]\d+", node.id))
        if not is_known or len(text) > _LONGEST:
            raise ValueError(f"a tensor size is not a plain arithmetic expression: {text[:80]!r}")


def _check_structure(text: str) -> None:
    try:
        _check_tree(json.loads(text)[1])
    except (LookupError, TypeError):
        raise ValueError(f"an input or output structure is not supported: {text[:80]!r}") from None


def _check_tree(node: dict[str, Any]) -> None:
    """Tuples, lists and dicts only: other types name modules to import."""
    if node["type"] not in _TREE_TYPES or not _TREE_CONTEXT.fullmatch(node["context"] or "null"):
        raise ValueError(f"an input or output structure is not supported: type {node['type']!r}")
    for child in node["children_spec"]:
        _check_tree(child)
