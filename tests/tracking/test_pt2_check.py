"""An exported model that would execute something when it is loaded is refused before it is."""

import contextlib
import json
import os
import resource
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.errors import ClaimError
from src.tracking.pt2_check import checked_copy
from tests import hostile
from tests.hostile import CANARY, CODE, GRAPH, Files


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("nothing", torch.zeros(0))  # a file without a byte

    def forward(self, pixels: Tensor) -> Tensor:
        means: Tensor = self.layer(pixels.float().mean(dim=(2, 3)))
        return means.softmax(dim=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    example = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    program = torch.export.export(Small(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return path


def written(content: bytes) -> Path:
    path = Path("changed.pt2")
    path.write_bytes(content)
    return path


def changed(source: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    return written(hostile.archived(list(hostile.edited(hostile.read(source), edit).items())))


def refuse(path: Path, said: str) -> str:
    with pytest.raises(ClaimError, match=said) as caught, checked_copy(path):
        pass
    assert not CANARY.exists()
    return str(caught.value)


def loads_as_torch_does(path: Path) -> None:
    """Runs torch's own loader and the graph; whether it fails afterwards does not matter."""
    with contextlib.suppress(Exception):
        torch.export.load(path).module()(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))


def test_ours_is_copied_and_loaded_to_the_bit(exported: Path) -> None:
    plain = torch.export.load(exported).module()
    with checked_copy(exported) as file:
        names = zipfile.ZipFile(file).namelist()
        file.seek(0)
        module = torch.export.load(file).module()
    assert names == zipfile.ZipFile(exported).namelist()
    assert module.code == plain.code  # the guard on the size of the images too
    assert module.state_dict().keys() == plain.state_dict().keys()
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(module(pixels), plain(pixels))


def test_what_was_checked_is_what_is_loaded(exported: Path) -> None:
    """The file is replaced after the check."""
    path = written(exported.read_bytes())
    with checked_copy(path) as file:
        path.write_bytes(hostile.make(exported, hostile.expression))
        module = torch.export.load(file).module()
    assert module(torch.zeros(3, 3, 8, 8, dtype=torch.uint8)).shape == (3, 3)
    assert not CANARY.exists()


def test_the_copy_leaves_nothing_behind(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("temporary")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with checked_copy(exported) as file:
        assert list(folder.iterdir()) == []
        assert os.fstat(file.fileno()).st_nlink == 0


def test_no_room_for_the_copy_is_no_verdict_on_the_model(exported: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        said = rf"model\.pt2, copied to {tempfile.gettempdir()}"
        with pytest.raises(OSError, match=said), checked_copy(exported):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("kind", "said"), [*hostile.CONTENTS, *hostile.LAYOUTS])
def test_a_hostile_archive(exported: Path, kind: Callable[..., Any], said: str) -> None:
    path = written(hostile.make(exported, kind))
    message = refuse(path, said)
    assert str(path) in message
    assert "nothing in it was executed" in message


ATTACKS = [kind for kind, _ in hostile.CONTENTS if kind != hostile.guards]
ATTACKS += [hostile.two_directories, hostile.prefix]  # type: ignore[list-item]


@pytest.mark.parametrize("kind", ATTACKS)
def test_what_it_is_refused_for_is_real(exported: Path, kind: Callable[..., Any]) -> None:
    loads_as_torch_does(written(hostile.make(exported, kind)))
    assert CANARY.exists()


@pytest.mark.parametrize("kind", [hostile.two_directories, hostile.prefix])
def test_python_reads_a_harmless_graph_where_torch_reads_code(
    exported: Path, kind: Callable[..., Any]
) -> None:
    path = written(hostile.make(exported, kind))
    seen = hostile.read(path)
    assert CODE.encode() not in seen[GRAPH]
    assert json.loads(seen[GRAPH]) == json.loads(hostile.read(exported)[GRAPH])


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.ops.other.op",
        "os.system",
        "torch.ops.aten.save.default",
        "torch.ops.aten._embedding_bag.default",
        "torch.ops.aten.add.__init__",
        "torch.ops.aten.__class__.__init__",
        "_operator.attrgetter",
        "_operator.call",
    ],
)
def test_an_operator_that_is_none(exported: Path, target: str) -> None:
    def edit(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    refuse(changed(exported, edit), "target is")


def test_a_name_that_is_code(exported: Path) -> None:
    def edit(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["nodes"][0]["name"] = f"x = {CODE}; y"

    refuse(changed(exported, edit), "name is")


@pytest.mark.parametrize(
    "tree",
    [
        '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]',
        "[1]",
        "[1, {}]",
        "[1, 2]",
        "3",
    ],
)
def test_a_structure_that_names_a_module(exported: Path, tree: str) -> None:
    def edit(model: dict[str, Any]) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = tree

    refuse(changed(exported, edit), "an input or output structure is not supported")


@pytest.mark.parametrize("size", ["9**9**9", "Pow(9, 9)", "1 +", "-" * 5000 + "1", "1" + "+1" * 1000])
def test_a_size_without_end(exported: Path, size: str) -> None:
    def edit(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["sym_int_values"] = {"x": {"as_expr": {"expr_str": size}}}

    refuse(changed(exported, edit), "a tensor size is not")


@pytest.mark.parametrize("value", [True, 1, "false", None, [[]], {"a": False}])
def test_weights_that_may_be_pickled(exported: Path, value: object) -> None:
    def edit(weights: dict[str, Any]) -> None:
        next(iter(weights["config"].values()))["use_pickle"] = value

    files = hostile.edited(hostile.read(exported), edit, hostile.WEIGHTS)
    refuse(written(hostile.archived(list(files.items()))), "pickled tensors")


def test_an_equation_is_no_code(exported: Path) -> None:
    """What `maxvit_t` exports."""

    def edit(model: dict[str, Any], text: str) -> None:
        inputs = model["graph_module"]["graph"]["nodes"][0]["inputs"]
        inputs.append({"name": "equation", "arg": {"as_string": text}, "kind": 1})

    with checked_copy(changed(exported, lambda model: edit(model, "B G H I J, B G H J D -> B G H I D"))):
        pass
    refuse(changed(exported, lambda model: edit(model, "a.py")), r"as_string is 'a\.py'")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data/aotinductor/model.so", b"\x7fELF", "it holds a file 'model/data/aotinductor/model.so'"),
        ("data/weights/model.pt", hostile.bomb(), "it holds a file"),
        ("data/constants/opaque_obj_0", hostile.bomb(), "it holds a file"),
        ("models/MODEL.json", b"{}", "model/models/MODEL.json twice"),  # which torch takes for model.json
        ("models/model.json\0", b"{}", "model/models/model.json twice"),  # which Python does
        ("extra/../models/model.json", b"{}", "it holds a file"),
        ("../model/byteorder", b"little", "it holds a file"),
        ("archive_format", b" " * 2000, "too large"),
        (GRAPH, b"[" * 100_000, "nested too deeply"),
        (GRAPH, b"\xff", "can't decode"),
    ],
)
def test_other_files(exported: Path, name: str, content: bytes, said: str) -> None:
    files: Files = {**hostile.read(exported), name: content}
    refuse(written(hostile.archived(list(files.items()))), said)


def test_a_second_folder(exported: Path) -> None:
    files = [(name, content) for name, content in hostile.read(exported).items()]
    with zipfile.ZipFile("changed.pt2", "w") as archive:
        for name, content in files:
            archive.writestr(f"model/{name}", content)
        archive.writestr(f"other/{GRAPH}", files[0][1])
    refuse(Path("changed.pt2"), "exactly one folder")


def test_compressed_files(exported: Path) -> None:
    """A few bytes could say to be a tensor of any size."""
    with zipfile.ZipFile("changed.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in hostile.read(exported).items():
            archive.writestr(f"model/{name}", content)
    refuse(Path("changed.pt2"), "is compressed")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_no_archive(content: bytes) -> None:
    refuse(written(content), "is not loaded")


def test_a_damaged_byte(exported: Path) -> None:
    """Torch does not compare the checksums of what it loads."""
    content = bytearray(exported.read_bytes())
    at = content.index(b"data/weights/weight_0") + 60
    content[at] ^= 1
    refuse(written(bytes(content)), "Bad CRC-32 for file 'model/data/weights/weight_0'")


def test_a_file_that_cannot_be_read_is_no_verdict_on_it() -> None:
    with pytest.raises(FileNotFoundError), checked_copy(Path("nowhere.pt2")):
        pass
