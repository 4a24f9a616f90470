"""Weights that other programs saved: under prefixes, numbered, as safetensors; and what is not weights."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.errors import ModelError
from src.models.build import BuiltModel, build_model
from src.models.pretrained import read_state
from src.models.state_dicts import WRAPPERS, fit_state
from src.utils.torchvision_import import torchvision

State = dict[str, Tensor]
NAME = "shufflenet_v2_x0_5"
SIZE = 64


def built(weights: Path, *, name: str = NAME, classes: int = 2) -> BuiltModel:
    torch.manual_seed(1)
    return build_model(name, num_classes=classes, channels=3, size=SIZE, weights=str(weights))


def make_state(name: str = NAME, classes: int = 2, seed: int = 7) -> State:
    torch.manual_seed(seed)
    state: State = build_model(name, num_classes=classes, channels=3, size=SIZE).model.state_dict()
    return state


@pytest.fixture(scope="session")
def state() -> State:
    return make_state()


def saved(folder: Path, content: object, name: str = "w.ckpt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def is_loaded(model: nn.Module, state: State, but: str = "nothing") -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith(but))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "net.",
        "backbone.",
        "encoder.",
        "encoder_q.",
        "_orig_mod.",
        "module.",
        "module._orig_mod.model.",
        "_orig_mod.model.module.backbone.",
        "module.encoder_q.",
        "model.net.encoder.",
        "0.",  # nn.Sequential(network, head)
        "model.1.",
    ],
)
def test_prefixes_in_any_nesting(tmp_path: Path, state: State, prefix: str) -> None:
    model = built(saved(tmp_path, {"state_dict": prefixed(state, prefix), "epoch": 3}))
    assert is_loaded(model.model, state)


def test_the_report_counts_what_was_used_and_left(tmp_path: Path, state: State) -> None:
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    other = prefixed(make_state(seed=8), "encoder_k.")
    content = prefixed(body, "encoder_q.") | other | {"queue": torch.zeros(2, 2)}
    model = built(saved(tmp_path, {"state_dict": prefixed(content, "module.")}))
    assert is_loaded(model.model, body)
    count, path = len(state), tmp_path / "w.ckpt"
    assert model.notes[1] == (
        f"{path}: {count - 2} of the file's {2 * count - 1} tensors are used (below encoder_q.); "
        f"{count + 1} are left (module.encoder_k.conv1.0.weight, module.encoder_k.conv1.1.weight, "
        f"module.encoder_k.conv1.1.bias, ...); 2 of the model's {count} start new (fc.weight, fc.bias)."
    )


def test_wrappers_of_parts_are_taken_off(tmp_path: Path, state: State) -> None:
    content = {
        key.replace("stage2.", "stage2._orig_mod.").replace("fc.", "fc.module."): v
        for key, v in state.items()
    }
    assert is_loaded(built(saved(tmp_path, content)).model, state)


FAMILIES = "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 "
FAMILIES += "mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t "
FAMILIES += "swin_v2_t vgg11 vit_b_32"


def test_no_network_has_a_part_named_as_a_wrapper() -> None:
    for name in FAMILIES.split():
        special = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            model = torchvision.models.get_model(name, weights=None, **special)
        parts = {part for path, _ in model.named_modules() for part in path.split(".")}
        assert parts & set(WRAPPERS) == ({"encoder"} if name == "vit_b_32" else set())


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1", "mobilenet_v3_small"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.0."])
def test_numbered_parts_of_a_sequential(tmp_path: Path, name: str, prefix: str) -> None:
    torch.manual_seed(7)
    source: Any = torchvision.models.get_model(name, weights=None, num_classes=2)
    numbered = nn.Sequential(*source.children()).state_dict()
    assert all(key[0].isdigit() for key in numbered)
    model = built(saved(tmp_path, prefixed(numbered, prefix)), name=name)
    assert is_loaded(model.model, source.state_dict())
    assert "numbered as the parts of an nn.Sequential" in model.notes[0]


def test_a_numbered_body_without_its_head(tmp_path: Path) -> None:
    source = make_state("resnet18")
    torch.manual_seed(7)
    body = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-1]).state_dict()
    assert {"0.weight", "1.bias", "4.0.conv1.weight"} <= set(body)
    model = built(saved(tmp_path, body), name="resnet18")
    expected = torchvision.models.resnet18(weights=None)
    nn.Sequential(*list(expected.children())[:-1]).load_state_dict(body)
    assert is_loaded(model.model, expected.state_dict(), but="fc.")
    assert model.notes[0].endswith("has no head of the right shape: a new one was made.")
    assert f"2 of the model's {len(source)} start new (fc.weight, fc.bias)." in model.notes[1]


def test_the_features_of_a_network_alone(tmp_path: Path) -> None:
    source: Any = torchvision.models.get_model("densenet121", weights=None, num_classes=2)
    model = built(saved(tmp_path, prefixed(source.features.state_dict(), "encoder.")), name="densenet121")
    assert is_loaded(model.model, source.state_dict(), but="classifier.")


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder."])
def test_the_encoder_of_a_vision_transformer_is_no_prefix(prefix: str) -> None:
    def transformer() -> nn.Module:
        vit: nn.Module = torchvision.models.VisionTransformer(
            64, 32, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=2
        )
        return vit

    source, model = transformer().state_dict(), transformer()
    content = prefixed(source, prefix)
    notes = fit_state(model, content, source="a file", small_stem=False, keep_head=True)
    assert is_loaded(model, source)
    assert bool(notes) == bool(prefix)


@pytest.mark.parametrize("prefixes", [("encoder.", "backbone."), ("", "model."), ("module.", "")])
def test_two_networks_that_fit_are_refused(tmp_path: Path, state: State, prefixes: tuple[str, str]) -> None:
    content = prefixed(state, prefixes[0]) | prefixed(make_state(seed=8), prefixes[1])
    with pytest.raises(ModelError, match=r"with\s+different values.* in a separate file"):
        built(saved(tmp_path, content))


def test_two_networks_with_other_heads_are_refused_too(tmp_path: Path, state: State) -> None:
    other = {key: value for key, value in make_state(seed=8).items() if not key.startswith("fc.")}
    with pytest.raises(ModelError, match=r"keys that begin with encoder\..*keys that begin with backbone\."):
        built(saved(tmp_path, prefixed(state, "encoder.") | prefixed(other, "backbone.")))


def test_the_same_network_under_two_names_is_no_question(tmp_path: Path, state: State) -> None:
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    content = prefixed(body, "net.") | prefixed(state, "model.")
    assert is_loaded(built(saved(tmp_path, content)).model, state)


def test_too_few_tensors_are_refused_with_their_share(tmp_path: Path, state: State) -> None:
    some = {key: value for key, value in prefixed(state, "model.").items() if "stage2" in key}
    assert sum("num_batches" not in key for key in some) == 70
    with pytest.raises(ModelError, match=r"70 of the model's 280 tensors are there \(25%\); 210 missing"):
        built(saved(tmp_path, some))


def test_a_larger_network_of_the_family_is_refused(tmp_path: Path) -> None:
    content = prefixed(make_state("resnet34"), "model.")
    with pytest.raises(ModelError, match=r"100 of the model's 100 tensors .*96 unexpected \(layer1\.2"):
        built(saved(tmp_path, content), name="resnet18", classes=3)


# --- safetensors


def safetensors(path: Path, tensors: State, **header: Any) -> Path:
    """Write a file as the format's specification has it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.bfloat16: "BF16"}
    for name, tensor in tensors.items():
        raw = (
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if tensor.ndim
            else (struct.pack("<q", int(tensor)))
        )
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(entries | header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors_load_as_the_state_dict_does(tmp_path: Path, state: State, prefix: str) -> None:
    path = safetensors(tmp_path / "model.safetensors", prefixed(state, prefix))
    model = built(path)
    assert is_loaded(model.model, state)
    assert model.weights == str(path)


def test_safetensors_give_every_bit(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 4).half(),
        "a": torch.tensor([2**40, -1]),
        "c": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }
    found, spec = read_state(safetensors(tmp_path / "x.safetensors", tensors))
    assert spec is None
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
        k: (v.dtype, v.shape) for k, v in tensors.items()
    }
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def raw(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header too small"),
        (b"\x01\0", "header too small"),
        (b"PK\x03\x04" + bytes(50), "invalid header length"),
        (struct.pack("<Q", 2**63) + b"{}", "header too large"),
        (raw({"a": entry()}, bytes(7)), "file not fully covered"),
        (raw({"a": entry()}, bytes(9)), "file not fully covered"),
        (raw(b"not json"), "invalid JSON"),
        (raw(b"\xff\xfe"), "invalid UTF-8"),
        (raw(b"[" * 100_000), "invalid JSON"),
        (raw([1]), "invalid JSON"),
        (raw({"a": 1}), "invalid JSON"),
        (raw({"a": entry(dtype="F8_E4M3")}), "invalid shape, data type, or offset"),
        (raw({"a": entry(dtype=["F32"])}), "invalid JSON"),
        (raw({"a": entry(shape=[-2])}), "invalid value"),
        (raw({"a": entry(shape=[2.0])}), "invalid type"),
        (raw({"a": entry(shape=[True, 2])}), "invalid type"),
        (raw({"a": entry(shape="2")}), "invalid type"),
        (raw({"a": entry(data_offsets=[0])}), "invalid length"),
        (raw({"a": entry(data_offsets=[0, 2**70])}), "invalid type"),
        (raw({"a": entry(shape=[3])}), "invalid shape, data type, or offset"),
        (raw({"a": entry(data_offsets=[4, 12])}, bytes(12)), "invalid offset for tensor `a`"),
        (raw({"a": entry(), "b": entry()}), "invalid offset for tensor"),
        (raw({"a": entry(), "b": entry(data_offsets=[9, 17])}, bytes(17)), "invalid offset for tensor `b`"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"x\.safetensors cannot be read as safetensors: .*{message}"):
        built(path)


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 20_000_000))
        file.truncate(30_000_000)
    with pytest.raises(ModelError, match=r"20,000,000 bytes of the header .*MLPROJECT_LIMIT_FACTOR"):
        built(path)


# --- what is not weights


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "a Git LFS pointer, not the weights; run git lfs pull"),
        (b"\n <!DOCTYPE html>\n<html><head>", "an HTML or XML page, not the weights"),
        (b"\xef\xbb\xbf<html>", "an HTML or XML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an HTML or XML page"),
    ],
)
def test_what_a_download_left_instead_is_named(
    tmp_path: Path, suffix: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"w{suffix} is {message}"):
        built(path)


def test_a_file_is_read_by_its_ending_whatever_its_case(tmp_path: Path, state: State) -> None:
    write: Callable[..., Path] = safetensors
    assert is_loaded(built(write(tmp_path / "W.SAFETENSORS", state)).model, state)
