"""Fitting a state dict that others wrote to a model of ours."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from src.errors import ModelError
from src.models.surgery import adapt_filters, first_convolution, head_path
from src.utils.torchvision_import import torchvision

# Older DenseNet files, torchvision's own among them, call the layers norm.1 and conv.1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
# Classifiers that help the training of GoogLeNet and Inception; ours are built without.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_SHOWN = 3


def fit_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, small_stem: bool, keep_head: bool
) -> list[str]:
    """Loads a state dict into the model, adapted to its channels, stem, classes and image size.

    Args:
        model: The model; what is not loaded keeps its random values.
        state: The state dict.
        source: What the state is, for messages.
        small_stem: Whether the model has the stem for small images, which larger filters do not fit.
        keep_head: Whether a head that fits is loaded too.

    Returns:
        Sentences that the user should see.

    Raises:
        ModelError: If anything but the head or a larger stem does not fit; it names the keys.
    """
    values = _renamed(model, state)
    notes = _fit_stem(model, values, source=source, small_stem=small_stem)
    notes += _fit_head(model, values, source=source, keep_head=keep_head)
    _fit_positions(model, values)
    faults = _load(model, values, left_out=tuple(path for path, _ in notes))
    if faults:
        raise ModelError(
            f"The weights of {source} do not fit the model: {'; '.join(faults)}. "
            "Check that model.name and model.stem are those of the file."
        )
    return [note for _, note in notes if note]


def _renamed(model: nn.Module, state: Mapping[str, Tensor]) -> "OrderedDict[str, Tensor]":
    """Returns a copy with today's key names, without what data-parallel training put before them."""
    values: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        new = _OLD_DENSENET.sub(r"\1", key.removeprefix("module."))
        if not new.startswith(_AUXILIARY):
            values[new] = value
    # MNASNet refuses a state that does not tell its version; all of torchvision's are current.
    values._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]
    return values


def _fit_stem(
    model: nn.Module, values: dict[str, Tensor], *, source: str, small_stem: bool
) -> list[tuple[str, str]]:
    """Adapts the first filters; returns the layer left out, if any, and a sentence about it."""
    path, convolution = first_convolution(model)
    filters = values.get(path + ".weight")
    if filters is None or filters.ndim != 4:
        return []
    size, own = filters.shape[-1], convolution.kernel_size[0]
    if small_stem and size > own:
        _drop(values, path)
        note = (
            f"The {size}x{size} filters of {source} do not fit the {own}x{own} stem for small images: "
            "the first convolution starts from random filters (model.stem=imagenet keeps them)."
        )
        return [(path, note)]
    values[path + ".weight"] = adapt_filters(filters, convolution.in_channels)
    return []


def _fit_head(
    model: nn.Module, values: dict[str, Tensor], *, source: str, keep_head: bool
) -> list[tuple[str, str]]:
    """Leaves out a head that does not fit or is not wanted; returns as ``_fit_stem`` does."""
    path = head_path(model)
    own = {f"{path}.{key}": value.shape for key, value in model.get_submodule(path).state_dict().items()}
    found = {key: value.shape for key, value in values.items() if _below(key, path)}
    if keep_head and found == own:
        return []
    _drop(values, path)
    note = f"{source} has no head of the right shape: a new one was made." if keep_head else ""
    return [(path, note)]


def _fit_positions(model: nn.Module, values: "OrderedDict[str, Tensor]") -> None:
    """Interpolates the position embeddings of a vision transformer to the model's image size."""
    positions = values.get("encoder.pos_embedding")
    if positions is None or not isinstance(model, torchvision.models.VisionTransformer):
        return
    side = round((positions.shape[1] - 1) ** 0.5)
    if positions.ndim == 3 and positions.shape[0] == 1 and side * side + 1 == positions.shape[1]:
        torchvision.models.vision_transformer.interpolate_embeddings(
            model.image_size, model.patch_size, values
        )


def _load(model: nn.Module, values: dict[str, Tensor], left_out: tuple[str, ...]) -> list[str]:
    """Loads what fits; returns what does not, one phrase per kind."""
    own = {key: value.shape for key, value in model.state_dict().items()}
    shaped = {k: v.shape for k, v in values.items() if k in own and v.shape != own[k]}
    for key in shaped:
        del values[key]
    try:
        # Asked afterwards, not before: some modules rename the keys of old files while they load.
        result = model.load_state_dict(values, strict=False)
    except (RuntimeError, ValueError) as error:
        return [str(error)]
    missing = [k for k in result.missing_keys if k not in shaped and not any(_below(k, p) for p in left_out)]
    sizes = [f"{k} {tuple(shape)} for {tuple(own[k])}" for k, shape in shaped.items()]
    kinds = {"missing": missing, "unexpected": result.unexpected_keys, "of another shape": sizes}
    return [f"{len(keys)} {kind} ({_listed(keys)})" for kind, keys in kinds.items() if keys]


def _below(key: str, path: str) -> bool:
    return key.startswith(path + ".")


def _drop(values: dict[str, Tensor], path: str) -> None:
    for key in [key for key in values if _below(key, path)]:
        del values[key]


def _listed(keys: Iterable[str]) -> str:
    known = list(keys)
    return ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
