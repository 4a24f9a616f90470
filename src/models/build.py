"""Build any torchvision classifier with its own head, stem and weights."""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..utils.torchvision_import import torchvision
from .forward import eval_mode
from .pretrained import LoadedWeights, load_weights
from .stem import has_small_stem, make_pooling_deterministic, set_stem, small_stem_families

_SMALL_IMAGE = 40
# Sizes to try if images are too small, so that the message can name one that works.
_LARGER_SIZES = (32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320)


@dataclass(frozen=True, kw_only=True)
class BuiltModel(LoadedWeights):
    """A model, the weights loaded into it, and its resolved stem.

    Attributes:
        model: The model, on the CPU; returns logits (N, num_classes).
        stem: "imagenet" or "small".
    """

    model: nn.Module
    stem: str


def available_models() -> list[str]:
    """Return the names of torchvision's classification models, sorted."""
    # Detection, segmentation, video and quantized models are in submodules.
    return sorted(torchvision.models.list_models(module=torchvision.models))


def build_model(
    name: str,
    *,
    num_classes: int,
    channels: int,
    size: int,
    stem: str = "auto",
    weights: str = "none",
    exact: bool = True,
) -> BuiltModel:
    """Build a classifier; deterministic for a given state of torch's global random generator.

    Args:
        name: A classification model of torchvision.
        num_classes: Number of classes of the new head.
        channels: Channels of the images.
        size: Height and width of the images in pixels.
        stem: ``imagenet`` (torchvision's), ``small`` (3x3, stride 1, no max-pool; patches of 2 pixels for
            transformers), or ``auto``: small for images up to 40 pixels if the family has it.
        weights: ``imagenet`` (or ``auto``, the same), ``none``, or the path of a state dict.
        exact: Whether filters adapted to other channels account for the mean and std of each color.

    Returns:
        The model, in training mode, and its resolved options.

    Raises:
        ModelError: The name or stem is unknown, the weights cannot be loaded, or the model cannot process
            such images.
    """
    _check_name(name)
    small = _wants_small_stem(name, stem, size)
    model = _construct(name, num_classes, size)
    set_stem(model, name, channels=channels, small=small)
    make_pooling_deterministic(model)
    loaded = load_weights(model, name, weights, small_stem=small, exact=exact)
    _probe(model, name, channels, size)
    return BuiltModel(**vars(loaded), model=model, stem="small" if small else "imagenet")


def _check_name(name: str) -> None:
    known = available_models()
    if name in known:
        return
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or known
    raise ModelError(
        f"model.name: no classification model {name!r} in torchvision; closest names: {', '.join(near)}."
    )


def _wants_small_stem(name: str, stem: str, size: int) -> bool:
    if stem not in ("auto", "imagenet", "small"):
        raise ModelError(f"model.stem: expected auto, imagenet or small, not {stem!r}.")
    if stem == "small" and not has_small_stem(name):
        raise ModelError(
            f"model.stem=small: no stem for small images in {name}; set model.stem=imagenet, "
            f"or choose a model of a family that has one: {', '.join(small_stem_families())}."
        )
    return stem == "small" or (stem == "auto" and size <= _SMALL_IMAGE and has_small_stem(name))


def _construct(name: str, num_classes: int, size: int) -> nn.Module:
    """Build the RGB model with random weights and a head of ``num_classes``."""
    special: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        special = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        special = {"image_size": size}
    elif name.startswith("maxvit_"):
        special = {"input_size": (size, size)}
    try:
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **special
        )
    except (AssertionError, ValueError) as error:
        step = int(name.rsplit("_", 1)[1]) if name.startswith("vit_") else 224
        raise ModelError(
            f"{name} takes images whose size is a multiple of {step} px, not {size} px: "
            f"set data.image_size to {max(round(size / step), 1) * step}."
        ) from error
    return model


def _probe(model: nn.Module, name: str, channels: int, size: int) -> None:
    """Run one batch through the model, so that images that it cannot process fail before training."""
    with eval_mode(model), torch.random.fork_rng(devices=[]):
        error = _failure(model, channels, size)
        if error is None:
            return
        larger = (s for s in _LARGER_SIZES if s > size)
        fits = next((s for s in larger if _failure(model, channels, s) is None), None)
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if fits is not None:
        raise ModelError(
            f"{name} cannot take images of {size} px: they are too small for its layers ({cause}); "
            f"set data.image_size to {fits} or more."
        ) from error
    raise ModelError(
        f"{name} fails on images of {size} px with {channels} channel(s) ({cause}); "
        "set another data.image_size or model.name."
    ) from error


@torch.no_grad()
def _failure(model: nn.Module, channels: int, size: int) -> Exception | None:
    try:
        model(torch.zeros(2, channels, size, size))
    except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        return error
    return None
