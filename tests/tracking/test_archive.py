"""An exported model that would run something when it is loaded is refused before it is."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.errors import ClaimError
from src.tracking.archive import check_archive
from src.tracking.logged_model import _without_pickle

MODEL = "model/models/model.json"
EVIL = "__import__('os').system('touch owned')"


class Small(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean(dim=(2, 3)).softmax(dim=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    example = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    program = torch.export.export(Small(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return path


def rewritten(source: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes]) -> Path:
    path = Path("changed.pt2")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in extra.items():
            new.writestr(name, content)
    return path


def edited(source: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    def change(name: str, content: bytes) -> bytes:
        if name != MODEL:
            return content
        model = json.loads(content)
        edit(model)
        return json.dumps(model).encode()

    return rewritten(source, change, {})


def nodes(model: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = model["graph_module"]["graph"]["nodes"]
    return found


def replace_expressions(value: Any) -> None:
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "expr_str":
            value[key] = f"{EVIL} or {below}"
        elif isinstance(below, dict | list):
            replace_expressions(below)


def test_ours_is_loaded(exported: Path) -> None:
    check_archive(exported)
    with _without_pickle():
        assert torch.export.load(exported).module()(torch.zeros(3, 3, 8, 8, dtype=torch.uint8)).shape == (
            3,
            3,
        )


def test_an_expression_that_is_code(exported: Path) -> None:
    path = edited(exported, replace_expressions)
    with pytest.raises(ClaimError, match="a size is"):
        check_archive(path)
    assert not Path("owned").exists()
    # What it is refused for is real: torch's own loader runs it.
    torch.export.load(path)
    assert Path("owned").exists()


def test_guards_that_are_code(exported: Path) -> None:
    path = edited(exported, lambda model: model.update(guards_code=[EVIL]))
    with pytest.raises(ClaimError, match="guards as code"):
        check_archive(path)


@pytest.mark.parametrize("target", ["torch.os.system", "torch.hub.load", "torch.ops.other.op", "os.system"])
def test_an_operator_that_is_none(exported: Path, target: str) -> None:
    path = edited(exported, lambda model: nodes(model)[0].update(target=target))
    with pytest.raises(ClaimError, match="target is"):
        check_archive(path)


def test_a_name_that_is_code(exported: Path) -> None:
    path = edited(exported, lambda model: nodes(model)[0].update(name=f"x = {EVIL}; y"))
    with pytest.raises(ClaimError, match="name is"):
        check_archive(path)


def test_a_structure_that_names_a_module(exported: Path) -> None:
    tree = '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'

    def edit(model: dict[str, Any]) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = tree

    with pytest.raises(ClaimError, match="a structure is of type"):
        check_archive(edited(exported, edit))


def test_other_files(exported: Path) -> None:
    path = rewritten(exported, lambda _, content: content, {"model/data/aotinductor/model.so": b"\x7fELF"})
    with pytest.raises(ClaimError, match="there is a file"):
        check_archive(path)
    Path("text.pt2").write_text("no archive")
    with pytest.raises(ClaimError, match="not loaded"):
        check_archive(Path("text.pt2"))


def test_pickled_inputs_are_left_to_mlflow_which_refuses_them(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variable unset, as users have it: the loader sets it for itself."""
    import mlflow.pytorch

    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch owned",)

    buffer = io.BytesIO()
    torch.save(Evil(), buffer, pickle_module=pickle)
    path = rewritten(
        exported, lambda name, content: buffer.getvalue() if "sample_inputs" in name else content, {}
    )
    check_archive(path)
    with _without_pickle(), pytest.raises(mlflow.MlflowException, match="pickle"):
        mlflow.pytorch._validate_pt2_archive_is_pickle_free(str(path))
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" not in os.environ
    assert not Path("owned").exists()
