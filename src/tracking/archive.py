"""Looks at an exported model before torch does: its loader runs what some of the strings in it say.

``torch.export.load`` evaluates shape expressions, executes guards, generates Python from names, and
looks operators up by attribute. So every string of the graph must be a plain name, and the few that
are more must follow the grammar of what this project exports; whatever else there is, is refused.
"""

import ast
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from src.errors import ClaimError

_FILES = re.compile(
    r"[^/]+/(data/(weights|constants)/[\w.]+|data/sample_inputs/model\.pt|models/model\.json"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)
_PLAIN = re.compile(r"[\w.+-]*")
_OPERATOR = re.compile(r"(torch\.ops\.aten|_operator|math)\.[\w.]+")
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_TREE_CONTEXT = re.compile(r'null|\[("\w*"(, "\w*")*)?\]')
_NODES = {"Expression", "Call", "Name", "Load", "keyword", "Constant", "BinOp", "UnaryOp", "USub"}
_NODES |= {"Add", "Sub", "Mult", "FloorDiv", "Mod", "Pow"}
_FUNCTIONS = {
    "Symbol",
    "Integer",
    "Mul",
    "Add",
    "Pow",
    "Max",
    "Min",
    "Mod",
    "PythonMod",
    "FloorDiv",
    "CleanDiv",
}
_MAX_JSON = 100_000_000


def check_archive(path: Path) -> None:
    """Refuses an archive of ``torch.export`` that could make its loader run something.

    Pickled tensors are not looked at here: MLflow does, where pickle is not allowed.

    Raises:
        ClaimError: It is no such archive, or holds more than names, numbers and operators of torch.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not _FILES.fullmatch(entry.filename):
                    raise ValueError(f"there is a file {entry.filename!r}")
                if entry.filename.endswith(".json"):
                    if entry.file_size > _MAX_JSON:
                        raise ValueError(f"{entry.filename} is too large")
                    _check(json.loads(archive.read(entry)))
    except (OSError, ValueError, RecursionError, SyntaxError, zipfile.BadZipFile) as error:
        raise ClaimError(f"{path} is not loaded, since it is no export of this project: {error}") from None


def _check(value: Any, key: str = "") -> None:  # noqa: ANN401 -- any JSON
    if isinstance(value, dict):
        for name, below in value.items():
            if not _PLAIN.fullmatch(name):
                raise ValueError(f"{name[:80]!r} is no name")
            if name != "metadata":  # comments about where a node came from
                _check(below, name)
    elif isinstance(value, list):
        if key == "guards_code" and value:
            raise ValueError("it brings guards as code")
        for below in value:
            _check(below, key)
    elif isinstance(value, str):
        _check_text(value, key)


def _check_text(text: str, key: str) -> None:
    if key == "expr_str":
        _check_expression(text)
    elif key in ("in_spec", "out_spec"):
        if text:
            _check_tree(json.loads(text)[1])
    elif not _PLAIN.fullmatch(text) or (key == "target" and not _OPERATOR.fullmatch(text)):
        raise ValueError(f"{key} is {text[:80]!r}")


def _check_expression(text: str) -> None:
    """Sizes only: symbols, whole numbers, arithmetic."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        is_known = type(node).__name__ in _NODES
        if isinstance(node, ast.Constant):
            is_known = isinstance(node.value, int) or bool(re.fullmatch(r"[a-z]+\d+", str(node.value)))
        if isinstance(node, ast.Call):
            is_known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        if isinstance(node, ast.Name):
            is_known = node.id in _FUNCTIONS or bool(re.fullmatch(r"[a-z]\d+", node.id))
        if not is_known:
            raise ValueError(f"a size is {text[:80]!r}")


def _check_tree(node: dict[str, Any]) -> None:
    """Tuples, lists and dicts only: other types name modules to import."""
    if node["type"] not in _TREE_TYPES or not _TREE_CONTEXT.fullmatch(node["context"] or "null"):
        raise ValueError(f"a structure is of type {node['type']!r}")
    for child in node["children_spec"]:
        _check_tree(child)
