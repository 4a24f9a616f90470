"""Load state dicts of other programs, channel counts, classes and image sizes into a model."""

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..utils.torchvision_import import torchvision
from .stem import Normalization, adapt_filters, adapt_stem, first_convolution, head_path, shifted_by_stem

WRAPPERS = ("model", "net", "backbone", "encoder", "encoder_q", "_orig_mod", "module")
"""Attribute names under which other programs store the network, so that keys start with them."""
# torch.compile and DataParallel can wrap any submodule; no torchvision model has a submodule of this name.
_TRANSPARENT = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module)\.")
# Older DenseNet files, including torchvision's own, call the layers norm.1 and conv.1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
_MAX_WRAPPERS = 8  # nested in each other
_COUNTER = "num_batches_tracked"  # keys with this ending are not trained, and older files lack them
# Auxiliary classifiers of GoogLeNet and Inception; this project builds the models without them.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_MAX_LISTED = 3


@dataclass(frozen=True)
class Match:
    """The tensors of a file under the names that the model has for them.

    Attributes:
        values: Tensors by name in the model; some names may not exist in the model.
        origins: Name in the file by name in the model.
        how: How the names differ, for messages; "" if they do not.
    """

    values: dict[str, Tensor]
    origins: dict[str, str]
    how: str


@dataclass(frozen=True)
class _KeyMapping:
    """One possible mapping of keys to the model's names: strip a prefix, then rename."""

    prefix: str
    keys: list[str]
    rename: Callable[[str], str | None]
    how: str

    def __str__(self) -> str:
        named = f"keys that begin with {self.prefix}" if self.prefix else "keys without a prefix"
        return f"{named}, {self.how}" if self.how else named

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield the name in the model and the key, for each key that has one."""
        for key in self.keys:
            if (name := self.rename(key[len(self.prefix) :])) is not None:
                yield name, key

    def count_fitting(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> int:
        """Count the tensors whose name and shape both exist in ``shapes``."""
        return sum(shapes.get(name) == tensors[key].shape for name, key in self.names())


def match_names(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> Match:
    """Find the key prefix, or the numbering of an ``nn.Sequential``, by which most tensors fit the model.

    Args:
        model: The model.
        state: Tensors by their names in the file.
        source: Description of the file for messages.

    Raises:
        ModelError: Different tensors fit the model equally well.
    """
    origins = _unwrapped(state, source)
    tensors = {key: state[origin] for key, origin in origins.items()}
    own = {k: v.shape for k, v in model.state_dict().items() if not k.endswith(_COUNTER)}
    head = head_path(model) + "."
    body = {key: shape for key, shape in own.items() if not key.startswith(head)}
    by_prefix = sorted(_group_by_prefix(origins).items(), key=lambda item: len(item[0]))
    mappings = [
        _KeyMapping(prefix, keys, *rename) for prefix, keys in by_prefix for rename in _renames(model)
    ]
    counts = [(one.count_fitting(tensors, body), one.count_fitting(tensors, own)) for one in mappings]
    best = mappings[counts.index(max(counts))]
    found = dict(best.names())
    for other, (count, _) in zip(mappings, counts, strict=True):
        if 2 * count <= len(body) or count < max(counts)[0]:
            continue
        again = dict(other.names())
        both = found.keys() & again.keys() & body.keys()
        if not all(_same(tensors[found[name]], tensors[again[name]]) for name in both):
            raise ModelError(
                f"The weights of {source} fit the model in two ways, with different values: by the {best}, "
                f"and by the {other}. Save the intended state dict in a separate file."
            )
    how = ", ".join(part for part in (f"below {best.prefix}" if best.prefix else "", best.how) if part)
    values = {name: tensors[key] for name, key in found.items()}
    return Match(values, {name: origins[key] for name, key in found.items()}, how)


def _unwrapped(state: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Return the key in the file by the key without transparent wrappers."""
    origins: dict[str, str] = {}
    for key, value in state.items():
        new = _OLD_DENSENET.sub(r"\1", _TRANSPARENT.sub("", key))
        before = origins.setdefault(new, key)
        if before != key and not _same(value, state[before]):
            raise ModelError(
                f"The weights of {source} hold {before} and {key}, which both are {new}, with different "
                "values. Save the intended state dict in a separate file."
            )
    return origins


def _group_by_prefix(keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Group keys by each prefix of wrapper names and numbers that they start with; "" has all."""
    groups: dict[str, list[str]] = defaultdict(list, {"": list(keys)})
    for key in keys:
        end = 0
        for part in key.split(".", _MAX_WRAPPERS)[:-1]:
            if part not in WRAPPERS and not part.isdecimal():
                break
            end += len(part) + 1
            groups[key[:end]].append(key)
    return groups


def _renames(model: nn.Module) -> Iterator[tuple[Callable[[str], str | None], str]]:
    """Yield the functions that may map a key to the model's name, each with its description."""
    children = [name for name, _ in model.named_children()]
    numbers = {str(number): name for number, name in enumerate(children)}

    def by_number(key: str) -> str | None:
        first, dot, rest = key.partition(".")
        return f"{numbers[first]}{dot}{rest}" if first in numbers else None

    yield str, ""
    yield by_number, "numbered as the parts of an nn.Sequential"
    for child in children:
        yield f"{child}.".__add__, f"those of {child} alone"


def _same(one: Tensor, two: Tensor) -> bool:
    return one is two or (one.dtype == two.dtype and torch.equal(one, two))


def fit_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    small_stem: bool,
    keep_head: bool,
    normalizations: tuple[Normalization, Normalization] | None = None,
) -> list[str]:
    """Load a state dict into the model, adapted to its channels, stem, classes and image size.

    Args:
        model: The model; parameters that are not loaded keep their random values.
        state: The state dict.
        source: Description of the state dict for messages.
        small_stem: Whether the model has the stem for small images, which larger filters do not fit.
        keep_head: Whether a head that fits is loaded too.
        normalizations: Normalization that the state dict expects, and that of the model; None adapts the
            filters to other channels without them, as earlier versions did.

    Returns:
        Notes for the user; none if every tensor is used under its own name.

    Raises:
        ModelError: Tensors other than the head or a larger stem do not fit, or the state dict fits in
            several ways; the message names the keys.
    """
    match = match_names(model, state, source=source)
    values = OrderedDict((k, value) for k, value in match.values.items() if not k.startswith(_AUXILIARY))
    # MNASNet rejects a state dict without a version; all of torchvision's are current.
    values._metadata = {"": {"version": model._version}}  # type: ignore[attr-defined]
    notes = _fit_stem(model, values, source=source, small_stem=small_stem, normalizations=normalizations)
    notes |= _fit_head(model, values, source=source, keep_head=keep_head)
    _fit_positions(model, values)
    loaded = _load(model, values, dropped=tuple(f"{path}." for path in notes))
    if loaded.faults:
        raise ModelError(
            f"The weights of {source} do not fit the model: {loaded.coverage}; {'; '.join(loaded.faults)}. "
            "Check that model.name and model.stem are those of the file (keys are read as torchvision has "
            f"them, below {'., '.join(WRAPPERS)}., or numbered by an nn.Sequential)."
        )
    report = _report(model, state, match, loaded, source) if keep_head else ""
    return [note for note in (*notes.values(), report) if note]


@dataclass(frozen=True)
class _Loaded:
    """The result of loading a state dict.

    Attributes:
        used: Names in the model of the tensors that were loaded.
        new: Names of those that keep their random values.
        coverage: How many of the required tensors were found, for messages.
        faults: Tensors that do not fit, one phrase per kind of fault.
    """

    used: set[str]
    new: list[str]
    coverage: str
    faults: list[str]


def _report(model: nn.Module, state: Mapping[str, Tensor], match: Match, loaded: _Loaded, source: str) -> str:
    """Describe how many tensors were used and which were not; "" if all were used under their names."""
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


def _fit_stem(
    model: nn.Module,
    values: dict[str, Tensor],
    *,
    source: str,
    small_stem: bool,
    normalizations: tuple[Normalization, Normalization] | None,
) -> dict[str, str]:
    """Adapt the first filters; return a note by the path of the layer that is dropped, if any."""
    path, convolution = first_convolution(model)
    filters = values.get(path + ".weight")
    if filters is None or filters.ndim != 4:
        return {}
    size, own = filters.shape[-1], convolution.kernel_size[0]
    if small_stem and size > own:
        _drop(values, path)
        note = (
            f"The {size}x{size} filters of {source} do not fit the {own}x{own} stem for small images: "
            "the first convolution starts from random filters (model.stem=imagenet keeps them)."
        )
        return {path: note}
    channels, old = convolution.in_channels, filters.shape[1]
    if normalizations is None or channels == old or old != len(normalizations[0][0]):
        values[path + ".weight"] = adapt_filters(filters, channels)
        return {}
    values[path + ".weight"], shift = adapt_stem(filters, channels, *normalizations)
    key, sign = shifted_by_stem(model)
    if key in values:  # else it is reported as missing
        values[key] = values[key] + sign * shift
    return {}


def _fit_head(model: nn.Module, values: dict[str, Tensor], *, source: str, keep_head: bool) -> dict[str, str]:
    """Drop a head that does not fit or is not wanted; return a note as ``_fit_stem`` does."""
    path = head_path(model)
    own = {f"{path}.{key}": value.shape for key, value in model.get_submodule(path).state_dict().items()}
    if keep_head and own == {k: value.shape for k, value in values.items() if k.startswith(f"{path}.")}:
        return {}
    _drop(values, path)
    return {path: f"{source} has no head of the right shape: a new one was made." if keep_head else ""}


def _fit_positions(model: nn.Module, values: "OrderedDict[str, Tensor]") -> None:
    """Interpolate the position embeddings of a vision transformer to the model's image size."""
    positions = values.get("encoder.pos_embedding")
    if positions is None or not isinstance(model, torchvision.models.VisionTransformer):
        return
    side = round((positions.shape[1] - 1) ** 0.5)
    if positions.ndim == 3 and positions.shape[0] == 1 and side * side + 1 == positions.shape[1]:
        interpolate = torchvision.models.vision_transformer.interpolate_embeddings
        interpolate(model.image_size, model.patch_size, values)


def _load(model: nn.Module, values: dict[str, Tensor], dropped: tuple[str, ...]) -> _Loaded:
    """Load the tensors that fit.

    All tensors of the model are required, except those below the ``dropped`` prefixes. Extra tensors are
    ignored if they belong to no part of the model, such as a projection head; within a part they mean that
    the file is of another model.
    """
    own = {key: value.shape for key, value in model.state_dict().items()}
    misshaped = {k: v.shape for k, v in values.items() if k in own and v.shape != own[k]}
    for key in misshaped:
        del values[key]
    try:
        # Checked after loading, because some modules rename the keys of old files while they load.
        result = model.load_state_dict(values, strict=False)
    except (RuntimeError, ValueError) as error:
        return _Loaded(set(), [], "none of its tensors was loaded", [str(error)])
    new = [key for key in result.missing_keys if key not in misshaped]
    missing = [key for key in new if not key.startswith(dropped)]
    sizes = [f"{k} {tuple(shape)} for {tuple(own[k])}" for k, shape in misshaped.items()]
    parts = {name for name, _ in model.named_children()}
    is_foreign = any(key.partition(".")[0] in parts for key in result.unexpected_keys)
    unexpected = result.unexpected_keys if missing or sizes or is_foreign else []
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": sizes}
    required = sum(not (key.endswith(_COUNTER) or key.startswith(dropped)) for key in own)
    found = required - sum(not key.endswith(_COUNTER) for key in (*missing, *misshaped))
    return _Loaded(
        used=set(values) - set(result.unexpected_keys),
        new=new,
        coverage=f"{found} of the model's {required} tensors are there ({found / required:.0%})",
        faults=[f"{len(keys)} {kind} ({_listed(keys)})" for kind, keys in kinds.items() if keys],
    )


def _drop(values: dict[str, Tensor], path: str) -> None:
    for key in [key for key in values if key.startswith(f"{path}.")]:
        del values[key]


def _listed(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:_MAX_LISTED]) + (", ..." if len(keys) > _MAX_LISTED else "")
