"""Fitting a state dict that others wrote to a model of ours."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import ModelError
from ..utils.torchvision_import import torchvision
from .matching import COUNTER, WRAPPERS, Match, match_names
from .surgery import (
    Normalization,
    adapt_filters,
    adapt_stem,
    first_convolution,
    head_path,
    shifted_by_stem,
)

# Classifiers that help the training of GoogLeNet and Inception; ours are built without.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_SHOWN = 3


def fit_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    small_stem: bool,
    keep_head: bool,
    normalizations: tuple[Normalization, Normalization] | None = None,
) -> list[str]:
    """Loads a state dict into the model, adapted to its channels, stem, classes and image size.

    Args:
        model: The model; what is not loaded keeps its random values.
        state: The state dict.
        source: What the state is, for messages.
        small_stem: Whether the model has the stem for small images, which larger filters do not fit.
        keep_head: Whether a head that fits is loaded too.
        normalizations: What the state expects of its channels, and what the model's are given; None
            carries filters over to other channels without regard to it, as earlier versions did.

    Returns:
        Sentences that the user should see; none where every tensor is used under its own name.

    Raises:
        ModelError: If anything but the head or a larger stem does not fit, or it fits in several ways; it
            names the keys.
    """
    match = match_names(model, state, source=source)
    values = _prepared(model, match)
    notes = _fit_stem(model, values, source=source, small_stem=small_stem, normalizations=normalizations)
    notes += _fit_head(model, values, source=source, keep_head=keep_head)
    _fit_positions(model, values)
    loaded = _load(model, values, left_out=tuple(path for path, _ in notes))
    if loaded.faults:
        raise ModelError(
            f"The weights of {source} do not fit the model: {loaded.share}; {'; '.join(loaded.faults)}. "
            "Check that model.name and model.stem are those of the file (keys are read as torchvision has "
            f"them, below {'., '.join(WRAPPERS)}., or numbered by an nn.Sequential)."
        )
    report = _report(model, state, match, loaded, source) if keep_head else ""
    return [note for note in (*(note for _, note in notes), report) if note]


@dataclass(frozen=True)
class _Loaded:
    """What became of a state dict.

    Attributes:
        used: The model's names of the tensors that it took.
        new: Names of those that keep their random values.
        share: How many of the tensors that were looked for are there, in words.
        faults: What does not fit, one phrase per kind.
    """

    used: set[str]
    new: list[str]
    share: str
    faults: list[str]


def _report(model: nn.Module, state: Mapping[str, Tensor], match: Match, loaded: _Loaded, source: str) -> str:
    """Return how many tensors were used and what was left; "" where that is nothing."""
    used = {match.origins[name] for name in loaded.used}
    left = [key for key in state if key not in used]
    if not (left or loaded.new or match.how):
        return ""
    parts = [f"{source}: {len(used)} of the file's {len(state)} tensors are used"]
    parts[0] += f" ({match.how})" if match.how else ""
    parts += [f"{len(left)} are left ({_listed(left)})"] if left else []
    if loaded.new:
        total = len(model.state_dict())
        parts.append(f"{len(loaded.new)} of the model's {total} start new ({_listed(loaded.new)})")
    return "; ".join(parts) + "."


def _prepared(model: nn.Module, match: Match) -> "OrderedDict[str, Tensor]":
    """Return the tensors by the model's names, less those of classifiers that only help training."""
    values = OrderedDict((k, value) for k, value in match.values.items() if not k.startswith(_AUXILIARY))
    # MNASNet refuses a state that does not tell its version; all of torchvision's are current.
    values._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]
    return values


def _fit_stem(
    model: nn.Module,
    values: dict[str, Tensor],
    *,
    source: str,
    small_stem: bool,
    normalizations: tuple[Normalization, Normalization] | None,
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
    channels, old = convolution.in_channels, filters.shape[1]
    if normalizations is None or channels == old or old != len(normalizations[0][0]):
        values[path + ".weight"] = adapt_filters(filters, channels)
        return []
    values[path + ".weight"], shift = adapt_stem(filters, channels, *normalizations)
    key, sign = shifted_by_stem(model)
    if key in values:  # else it is reported as missing
        values[key] = values[key] + sign * shift
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


def _load(model: nn.Module, values: dict[str, Tensor], left_out: tuple[str, ...]) -> _Loaded:
    """Load what fits.

    Everything that the model has must be there. What else is there is left where it belongs to no part of the
    model, such as a projection head; within a part it is a sign of another model.
    """
    own = {key: value.shape for key, value in model.state_dict().items()}
    shaped = {k: v.shape for k, v in values.items() if k in own and v.shape != own[k]}
    for key in shaped:
        del values[key]
    try:
        # Asked afterwards, not before: some modules rename the keys of old files while they load.
        result = model.load_state_dict(values, strict=False)
    except (RuntimeError, ValueError) as error:
        return _Loaded(set(), [], "none of its tensors was loaded", [str(error)])
    new = [key for key in result.missing_keys if key not in shaped]
    missing = [key for key in new if not any(_below(key, path) for path in left_out)]
    sizes = [f"{k} {tuple(shape)} for {tuple(own[k])}" for k, shape in shaped.items()]
    parts = {name for name, _ in model.named_children()}
    is_foreign = any(key.partition(".")[0] in parts for key in result.unexpected_keys)
    unexpected = result.unexpected_keys if missing or sizes or is_foreign else []
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": sizes}
    wanted = sum(not (key.endswith(COUNTER) or any(_below(key, path) for path in left_out)) for key in own)
    found = wanted - sum(not key.endswith(COUNTER) for key in (*missing, *shaped))
    return _Loaded(
        used=set(values) - set(result.unexpected_keys),
        new=new,
        share=f"{found} of the model's {wanted} tensors are there ({found / wanted:.0%})",
        faults=[f"{len(keys)} {kind} ({_listed(keys)})" for kind, keys in kinds.items() if keys],
    )


def _below(key: str, path: str) -> bool:
    return key.startswith(path + ".")


def _drop(values: dict[str, Tensor], path: str) -> None:
    for key in [key for key in values if _below(key, path)]:
        del values[key]


def _listed(keys: Iterable[str]) -> str:
    known = list(keys)
    return ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
