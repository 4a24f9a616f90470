"""Pretrained weights: none, ImageNet's (downloaded on first use), or a file."""

import contextlib
import difflib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from ..errors import ModelError
from ..utils.io import open_regular
from ..utils.limits import SAFETENSORS_HEADER
from ..utils.torchvision_import import torchvision
from .input_spec import InputSpec
from .state_dicts import fit_state
from .stem import first_convolution

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Trained on pixels in [-1, 1]; torchvision rescales ImageNet-normalized images for the first two.
_CENTERED = ("googlenet", "inception_v3", "efficientnet_v2_l")
_START = 512  # bytes that identify the kind of file
_STATE_KEYS = ("model_state_dict", "state_dict", "model")


@dataclass(frozen=True)
class LoadedWeights:
    """What was loaded into a model.

    Attributes:
        weights: "none", "imagenet" or the path that was loaded.
        mean: Mean per channel of pixels in [0, 1] that the weights expect, None for "none".
        std: Standard deviation per channel, None for "none".
        notes: Notes for the user.
    """

    weights: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


def load_weights(
    model: nn.Module, name: str, weights: str, *, small_stem: bool = False, exact: bool = True
) -> LoadedWeights:
    """Load weights into a model that already has its own head and stem.

    Args:
        model: The model, with random values.
        name: Its torchvision name.
        weights: ``imagenet`` (or ``auto``, the same), ``none``, or the path of a state dict.
        small_stem: Whether the model has the stem for small images.
        exact: Whether filters adapted to other channels account for the mean and std of each color.

    Raises:
        ModelError: The weights cannot be downloaded, read or fitted to the model.
    """
    if weights == "none":
        return LoadedWeights("none")
    is_imagenet = weights in ("auto", "imagenet")
    state, spec = (imagenet_state(name), None) if is_imagenet else read_state(Path(weights))
    channels = first_convolution(model)[1].in_channels
    expected = normalization(name, 3) if spec is None else (spec.mean, spec.std)
    is_same = spec is not None and spec.channels == channels
    mean, std = expected if is_same else normalization(name, channels)
    notes = fit_state(
        model,
        state,
        source="ImageNet" if is_imagenet else weights,
        small_stem=small_stem,
        keep_head=not is_imagenet,
        normalizations=(expected, (mean, std)) if exact else None,
    )
    return LoadedWeights("imagenet" if is_imagenet else weights, mean, std, tuple(notes))


def normalization(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel that torchvision's weights expect; their averages unless RGB."""
    mean, std = ((0.5,) * 3, (0.5,) * 3) if name in _CENTERED else (IMAGENET_MEAN, IMAGENET_STD)
    if channels == 3:
        return mean, std
    return (sum(mean) / 3,) * channels, (sum(std) / 3,) * channels


def read_state(path: Path) -> tuple[dict[str, Tensor], InputSpec | None]:
    """Read a state dict, or the one in a checkpoint; never execute anything in the file.

    Args:
        path: A ``.safetensors`` file, or a file of ``torch.save``: a state dict, or a dict that holds one
            as ``model_state_dict``, ``state_dict`` or ``model``, and may describe its ``input``.

    Returns:
        The state dict and the input that it was trained on, None if the file does not describe it.

    Raises:
        ModelError: The file is missing or contains no state dict of plain tensors.
    """
    loaded = _load_file(path.expanduser())
    holder = loaded if isinstance(loaded, Mapping) else {}
    state = next((holder[key] for key in _STATE_KEYS if isinstance(holder.get(key), Mapping)), holder)
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ModelError(
            f"{path} contains no state dict; save one with torch.save(model.state_dict(), path), alone or "
            f"in a dict under one of the keys {', '.join(_STATE_KEYS)}."
        )
    return dict(state), _input_of(holder)


def _load_file(path: Path) -> object:
    try:
        file = open_regular(path)
    except OSError as error:
        near = difflib.get_close_matches(str(path), ["auto", "imagenet", "none"], n=1)
        what = "is a folder" if path.is_dir() else str(error)
        if isinstance(error, FileNotFoundError):
            what = "does not exist"
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ModelError(
            f"The weights file {path} {what}; model.weights takes auto, imagenet, none, or the path of a "
            f"state dict file.{hint}"
        ) from None
    with file:
        if what := _not_weights(file.read(_START)):
            raise ModelError(f"The weights file {path} is {what}.")
        file.seek(0)
        load = _load_safetensors if path.suffix.lower() == ".safetensors" else _load_torch
        return load(file, path)


def _not_weights(start: bytes) -> str:
    """Describe a failed download in place of the weights, and the remedy; "" if it may be weights."""
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the weights; run git lfs pull in its repository, or download the file"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "an HTML or XML page, not the weights (a login, an error, a preview); download the file itself"
    return ""


def _load_safetensors(file: BinaryIO, path: Path) -> object:
    header_length = int.from_bytes(file.read(8), "little")
    is_inside = header_length <= os.fstat(file.fileno()).st_size
    if is_inside and (excess := SAFETENSORS_HEADER.excess(header_length)):
        raise ModelError(f"The weights file {path} is refused as too large: {excess}.")
    file.seek(0)
    try:
        return load_safetensors(file.read())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"The weights file {path} cannot be read as safetensors: {error}. Download or save it again."
        ) from None


def _load_torch(file: BinaryIO, path: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and malicious files raise many kinds of errors
        raise ModelError(
            f"The weights file {path} is not a file of torch.save with plain tensors, and no code in it "
            "was run; save the state dict again with torch.save(model.state_dict(), path)."
        ) from error


def _input_of(holder: Mapping[str, Any]) -> InputSpec | None:
    """Return the input that a checkpoint describes; other programs may use the key for something else."""
    try:
        return InputSpec.from_dict(holder["input"])
    except (KeyError, ModelError):
        return None


_TIMEOUT_SECONDS = 15.0  # without receiving a byte; the value of pip


def imagenet_state(name: str) -> dict[str, Any]:
    """Read the ImageNet state dict of a torchvision model, downloading it on first use.

    Raises:
        ModelError: They are not in the cache and cannot be downloaded; the message names the remedies.
    """
    url = str(torchvision.models.get_model_weights(name).DEFAULT.url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        # torch.hub downloads to a temporary file, checks the hash and renames it, so that concurrent
        # downloads are safe. It reports the download on stdout, which is for results.
        with _network_timeout(), contextlib.redirect_stdout(sys.stderr):
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except Exception as error:  # broken files and downloads raise many kinds of errors
        raise ModelError(_explain(name, url, file, error)) from error


def _explain(name: str, url: str, file: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if file.exists():
        problem = f"The ImageNet weights of {name} in {file} cannot be read ({reason}); delete the file or"
    else:
        problem = f"The ImageNet weights of {name} cannot be downloaded ({reason});"
    return (
        f"{problem} put {url} at {file}. --set model.weights=none trains from random weights instead, and "
        "--set model.weights=FILE starts from a state dict."
    )


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """Make a stalled download fail: torch.hub has no timeout option."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
