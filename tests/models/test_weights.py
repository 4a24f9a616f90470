import multiprocessing
import pickle
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.errors import ModelError
from src.models import pretrained
from src.models.build import BuiltModel, available_models, build_model
from src.models.input_spec import InputSpec
from src.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, imagenet_state, normalization
from src.models.state_dicts import fit_state
from src.utils.torchvision_import import torchvision

Publish = Callable[[Mapping[str, Tensor]], str]
Body = dict[str, Tensor]


def resnet(weights: str | Path, *, channels: int = 3, size: int = 64, classes: int = 2) -> BuiltModel:
    torch.manual_seed(1)
    return build_model("resnet18", num_classes=classes, channels=channels, size=size, weights=str(weights))


@pytest.fixture(scope="session")
def trained() -> Body:
    """The state of a ResNet-18 with 1000 classes, standing for ImageNet's."""
    torch.manual_seed(7)
    state: Body = torchvision.models.resnet18(weights=None).state_dict()
    return state


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return path


def body_is_equal(model: nn.Module, state: Body, but: tuple[str, ...] = ("fc",)) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith(but))


@pytest.mark.parametrize(
    ("name", "head", "key"),
    [
        ("resnet18", "fc.", None),
        ("resnet18", "fc.", "model_state_dict"),
        ("resnet18", "fc.", "state_dict"),
        ("resnet18", "fc.", "model"),
        ("resnet50", "fc.", None),
        ("mobilenet_v2", "classifier.1.", None),
        ("vit_b_32", "heads.head.", None),
    ],
)
def test_file_without_head_loads_the_body_exactly(
    tmp_path: Path, name: str, head: str, key: str | None
) -> None:
    torch.manual_seed(7)
    state = build_model(name, num_classes=5, channels=3, size=64).model.state_dict()
    body = {f"module.{k}": v for k, v in state.items() if not k.startswith(head)}
    assert len(body) == len(state) - 2
    path = saved(tmp_path, body if key is None else {key: body, "epoch": 3})
    built = build_model(name, num_classes=2, channels=3, size=64, weights=str(path))
    assert body_is_equal(built.model, state, but=(head,))
    assert built.weights == str(path)
    assert (built.mean, built.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "head" in built.notes[0]


def test_head_is_loaded_where_it_fits_and_new_where_not(tmp_path: Path) -> None:
    state = resnet("none", classes=5).model.state_dict()
    path = saved(tmp_path, state)
    same = resnet(path, classes=5)
    assert body_is_equal(same.model, state, but=("nothing",))
    assert same.notes == ()
    other = resnet(path, classes=2).model
    assert other.get_parameter("fc.weight").shape == (2, 512)
    assert body_is_equal(other, state)


def test_filters_of_a_file_follow_the_channels(tmp_path: Path, trained: Body) -> None:
    path = saved(tmp_path, trained)
    gray = resnet(path, channels=1)
    filters = trained["conv1.weight"]
    scale = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) / (sum(IMAGENET_STD) / 3)
    torch.testing.assert_close(
        gray.model.get_parameter("conv1.weight"), (filters / scale).sum(1, keepdim=True)
    )
    assert gray.mean == pytest.approx((0.449,), abs=1e-9)
    five = resnet(path, channels=5).model.get_parameter("conv1.weight")
    torch.testing.assert_close(five, (filters / scale)[:, [0, 1, 2, 0, 1]] * 0.6)
    assert body_is_equal(gray.model, trained, but=("fc", "conv1", "bn1.running_mean"))
    assert not torch.equal(gray.model.get_buffer("bn1.running_mean"), trained["bn1.running_mean"])


def test_filters_are_summed_as_earlier_versions_did_where_asked(tmp_path: Path, trained: Body) -> None:
    path = saved(tmp_path, trained)
    gray = build_model("resnet18", num_classes=2, channels=1, size=64, weights=str(path), exact=False)
    summed = trained["conv1.weight"].sum(1, keepdim=True)
    assert torch.equal(gray.model.get_parameter("conv1.weight"), summed)
    assert body_is_equal(gray.model, trained, but=("fc", "conv1"))


def test_small_stem_starts_fresh_and_says_so(tmp_path: Path, trained: Body) -> None:
    built = resnet(saved(tmp_path, trained), size=28)
    assert built.stem == "small"
    assert any("7x7" in note and "3x3" in note for note in built.notes)
    assert body_is_equal(built.model, trained, but=("fc", "conv1"))


def test_small_stem_of_a_file_is_kept(tmp_path: Path) -> None:
    state = resnet("none", size=28).model.state_dict()
    path = saved(tmp_path, state)
    assert body_is_equal(resnet(path, size=28).model, state, but=("nothing",))
    with pytest.raises(ModelError, match=r"conv1.weight \(64, 3, 3, 3\) for \(64, 3, 7, 7\).*model.stem"):
        resnet(path, size=64)


def test_strided_small_stem_keeps_its_filters(tmp_path: Path) -> None:
    source = build_model("mobilenet_v3_small", num_classes=2, channels=3, size=64).model
    path = saved(tmp_path, source.state_dict())
    built = build_model("mobilenet_v3_small", num_classes=2, channels=3, size=32, weights=str(path))
    assert built.stem == "small"
    assert body_is_equal(built.model, source.state_dict(), but=("nothing",))


@pytest.mark.parametrize(("channels", "mean"), [(1, (0.1,)), (3, IMAGENET_MEAN)])
def test_normalisation_of_a_checkpoint_is_used_where_it_fits(
    tmp_path: Path, trained: Body, channels: int, mean: tuple[float, ...]
) -> None:
    spec = InputSpec(1, 64, (0.1,), (0.2,))
    path = saved(tmp_path, {"model_state_dict": trained, "input": spec.to_dict()})
    assert resnet(path, channels=channels).mean == mean


def test_mismatch_names_the_keys(tmp_path: Path, trained: Body) -> None:
    state = {k: v for k, v in trained.items() if k != "layer4.1.bn2.bias"}
    state |= {"extra.weight": torch.zeros(2), "bn1.weight": torch.zeros(3)}
    with pytest.raises(ModelError) as error:
        resnet(saved(tmp_path, state))
    for part in (
        "1 missing (layer4.1.bn2.bias)",
        "1 unexpected (extra.weight)",
        "bn1.weight (3,) for (64,)",
        "weights.pth",
    ):
        assert part in str(error.value)


def test_weights_of_another_model_are_counted_and_cut_short(tmp_path: Path, trained: Body) -> None:
    path = saved(tmp_path, trained)
    with pytest.raises(ModelError, match=r"\d+ missing \(.*, \.\.\.\).*\d+ unexpected") as error:
        build_model("mobilenet_v3_small", num_classes=2, channels=3, size=64, weights=str(path))
    assert len(str(error.value)) < 700


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_hostile_file_is_not_run(tmp_path: Path, writer: str) -> None:
    path, target = tmp_path / "bomb.pth", tmp_path / "exploded"
    if writer == "torch":
        torch.save({"state_dict": _Bomb(target)}, path)
    else:
        path.write_bytes(pickle.dumps(_Bomb(target), protocol=2))
    with pytest.raises(ModelError, match=r"bomb.pth.*no code in it was run"):
        resnet(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"hello", b"", b"PK\x03\x04junk"])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not a file of torch\.save"):
        resnet(path)


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, [1, 2], {}, torch.zeros(2), {"model": {1: torch.zeros(1)}}]
)
def test_file_without_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ModelError, match="contains no state dict"):
        resnet(saved(tmp_path, content))


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"imagnet does not exist.*Did you mean imagenet\?"):
        resnet("imagnet")
    with pytest.raises(ModelError, match="is a folder"):
        resnet(tmp_path)


def test_position_embeddings_follow_the_image_size() -> None:
    def transformer(size: int) -> nn.Module:
        vit: nn.Module = torchvision.models.VisionTransformer(
            size, 32, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=2
        )
        return vit

    source, model = transformer(96).state_dict(), transformer(64)
    notes = fit_state(model, source, source="a file", small_stem=False, keep_head=True)
    # Corners stay where they are; so does the class token.
    positions = model.state_dict()["encoder.pos_embedding"][0]
    torch.testing.assert_close(positions, source["encoder.pos_embedding"][0, [0, 1, 3, 7, 9]])
    assert body_is_equal(model, source, but=("encoder.pos_embedding",))
    assert notes == []


def test_old_densenet_names_load(tmp_path: Path) -> None:
    source = build_model("densenet121", num_classes=2, channels=3, size=64).model.state_dict()
    old = {
        k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
        for k, v in source.items()
        if not k.endswith("num_batches_tracked")
    }
    built = build_model("densenet121", num_classes=2, channels=3, size=64, weights=str(saved(tmp_path, old)))
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert body_is_equal(built.model, source, but=("nothing",))


@pytest.mark.parametrize(
    ("name", "size", "extra"), [("mnasnet0_5", 64, ()), ("inception_v3", 80, ("AuxLogits.fc.bias",))]
)
def test_published_states_load(tmp_path: Path, name: str, size: int, extra: tuple[str, ...]) -> None:
    source = build_model(name, num_classes=2, channels=3, size=size).model.state_dict()
    path = saved(tmp_path, {**source, **{key: torch.zeros(9) for key in extra}})
    built = build_model(name, num_classes=2, channels=3, size=size, weights=str(path))
    assert body_is_equal(built.model, source, but=("nothing",))
    assert built.mean == (IMAGENET_MEAN if name == "mnasnet0_5" else (0.5, 0.5, 0.5))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
def test_without_network_the_remedies_are_named(
    cache: Path, set_url: Callable[[str], None], weights: str
) -> None:
    url = f"http://127.0.0.1:{closed_port()}/resnet18-f37072fd.pth"
    set_url(url)
    with pytest.raises(ModelError, match="cannot be downloaded") as error:
        resnet(weights)
    for remedy in (f"put {url} at {cache}/resnet18-f37072fd.pth", "--set model.weights=none", "a state dict"):
        assert remedy in str(error.value)


@pytest.mark.usefixtures("cache")
def test_server_that_never_answers_is_given_up(
    set_url: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_url(f"http://127.0.0.1:{silent.getsockname()[1]}/resnet18-f37072fd.pth")
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"cannot be downloaded .*timed out"):
            resnet("auto")
        assert time.monotonic() - start < 10  # and not the 15 s of a real download


@pytest.mark.parametrize("weights", ["auto", "imagenet"])
def test_imagenet_weights_are_fetched_once_and_get_a_new_head(
    cache: Path, trained: Body, publish: Publish, set_url: Callable[[str], None], weights: str
) -> None:
    name = publish(trained)
    built = resnet(weights, classes=1000)
    assert built.weights == "imagenet"
    assert (built.mean, built.std, built.notes) == (IMAGENET_MEAN, IMAGENET_STD, ())
    assert body_is_equal(built.model, trained)
    assert not torch.equal(built.model.get_parameter("fc.weight"), trained["fc.weight"])
    assert [file.name for file in cache.iterdir()] == [name]
    set_url(f"http://127.0.0.1:{closed_port()}/{name}")
    assert body_is_equal(resnet(weights).model, trained)


def test_file_with_another_hash_is_refused(
    tmp_path: Path, cache: Path, trained: Body, server: str, set_url: Callable[[str], None]
) -> None:
    torch.save(trained, tmp_path / "served" / "resnet18-00000000.pth")
    set_url(f"{server}/resnet18-00000000.pth")
    with pytest.raises(ModelError, match="invalid hash"):
        resnet("imagenet")
    assert list(cache.iterdir()) == []


def test_damaged_cache_is_named(cache: Path, set_url: Callable[[str], None]) -> None:
    set_url("http://127.0.0.1:9/resnet18-f37072fd.pth")
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(b"half a download")
    with pytest.raises(ModelError, match=r"resnet18-f37072fd\.pth cannot be read .* delete the file or put"):
        resnet("auto")


def test_processes_that_fetch_at_once_do_no_harm(cache: Path, trained: Body, publish: Publish) -> None:
    name = publish({"fc.bias": trained["fc.bias"]})
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=imagenet_state, args=("resnet18",)) for _ in "abc"]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert [file.name for file in cache.iterdir()] == [name]
    assert torch.equal(imagenet_state("resnet18")["fc.bias"], trained["fc.bias"])


def test_normalisation_is_that_of_the_presets() -> None:
    for name in available_models():
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        if name not in ("googlenet", "inception_v3"):  # these rescale ImageNet's normalisation inside
            assert normalization(name, 3) == (tuple(preset.mean), tuple(preset.std))
