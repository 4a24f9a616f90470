"""Check the JSON of an exported model before torch reads it: its loader executes some of the strings.

``torch.export.load`` evaluates shape expressions, executes guards, generates Python from names, and
looks operators up by attribute. Operators such as ``aten.from_file`` write files when the graph runs.
So every string must be a plain name, the few that are more must follow the grammar of what this project
exports, and an operator must compute with tensors only. Everything else is refused.
"""

import ast
import json
import re
from typing import Any

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


def check_graph(content: bytes) -> None:
    """Check one JSON file of an archive.

    Raises:
        ValueError: It is not JSON, or holds more than names, numbers and operators on tensors.
    """
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
        raise ValueError(f"a size is {text[:80]!r}") from None
    for node in ast.walk(tree):
        is_known = type(node).__name__ in _NODES
        if isinstance(node, ast.Constant):
            is_known = isinstance(node.value, int) or bool(re.fullmatch(r"[a-z]+\d+", str(node.value)))
        if isinstance(node, ast.Call):
            is_known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        if isinstance(node, ast.Name):
            is_known = node.id in _FUNCTIONS or bool(re.fullmatch(r"[a-z]\d+", node.id))
        if not is_known or len(text) > _LONGEST:
            raise ValueError(f"a size is {text[:80]!r}")


def _check_structure(text: str) -> None:
    try:
        _check_tree(json.loads(text)[1])
    except (LookupError, TypeError):
        raise ValueError(f"a structure is {text[:80]!r}") from None


def _check_tree(node: dict[str, Any]) -> None:
    """Tuples, lists and dicts only: other types name modules to import."""
    if node["type"] not in _TREE_TYPES or not _TREE_CONTEXT.fullmatch(node["context"] or "null"):
        raise ValueError(f"a structure is of type {node['type']!r}")
    for child in node["children_spec"]:
        _check_tree(child)
