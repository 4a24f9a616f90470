"""A checkpoint that somebody else has written, or replaces while it is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.errors import DataError, ModelError
from src.models.pretrained import read_state
from src.training.checkpoint import load_checkpoint
from tests import hostile
from tests.hostile import CANARY, Files


def saved(name: str, value: float) -> Path:
    path = Path(name)
    torch.save({"model_state_dict": {"weight": torch.full((3,), value)}}, path)
    return path


def weight_of(checkpoint: dict[str, Any]) -> float:
    return float(checkpoint["model_state_dict"]["weight"][0])


LAYOUTS = [hostile.two_directories, hostile.local_size, hostile.descriptor]
LAYOUTS += [hostile.trailing, hostile.comment, hostile.fewer]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_readers_would_see_different_weights(
    folder: Path, layout: Callable[[Files, Files], bytes]
) -> None:
    files = [hostile.read(saved("x.pth", value)) for value in (1.0, 2.0)]
    path = folder / "latest.pth"
    path.write_bytes(layout(*files))
    with pytest.raises(DataError, match=r"latest\.pth: not a checkpoint that can be opened: "):
        load_checkpoint(path)


def test_the_difference_is_real() -> None:
    files = [hostile.read(saved("x.pth", value)) for value in (1.0, 2.0)]
    path = Path("latest.pth")
    path.write_bytes(hostile.two_directories(*files))
    assert hostile.read(path)["data/0"] == files[0]["data/0"]
    assert weight_of(torch.load(path, weights_only=True)) == 2.0


@pytest.mark.parametrize("read", [load_checkpoint, read_state])
def test_a_file_is_opened_once(monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]) -> None:
    """Another file takes its name as soon as it is checked."""
    path, load = saved("latest.pth", 1.0), torch.load

    def replace_and_load(*args: Any, **options: Any) -> Any:
        saved("other.pth", 2.0).replace(path)
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", replace_and_load)
    found = read(path)
    weights = found["model_state_dict"] if isinstance(found, dict) else found[0]
    assert weights["weight"].tolist() == [1.0] * 3
    assert weight_of(load(path, weights_only=True)) == 2.0


PICKLES = {
    "arguments": b"\x80\x02ccollections\nOrderedDict\nq\x00(K\x01K\x02tR.",
    "tensor": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "memo": b"\x80\x02h\x05.",
    "odd": b"\x80\x02}(K\x01u.",
    "empty": b"",
    "nothing": b"\x80\x02.",
    "system": b"cos\nsystem\n(S'touch " + str(CANARY).encode() + b"'\ntR.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_no_checkpoint_holds(name: str) -> None:
    path = saved("latest.pth", 1.0)
    files = {**hostile.read(path), "data.pkl": PICKLES[name]}
    for content in (hostile.archived(list(files.items())), PICKLES[name]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"latest\.pth: not a checkpoint that can be opened"):
            load_checkpoint(path)
        with pytest.raises(ModelError, match=r"weights file latest\.pth is not a file of torch\.save"):
            read_state(path)
    assert not CANARY.exists()
