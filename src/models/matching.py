"""Finding a model's tensors under the names that other programs have given them."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .surgery import head_path

WRAPPERS = ("model", "net", "backbone", "encoder", "encoder_q", "_orig_mod", "module")
"""Attributes under which other programs keep a network, so that its keys begin with their names."""

# torch.compile and DataParallel can wrap any part of a network; no network of torchvision has such a part.
_TRANSPARENT = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module)\.")
# Older DenseNet files, torchvision's own among them, call the layers norm.1 and conv.1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
_DEEPEST = 8  # wrappers around each other
COUNTER = "num_batches_tracked"
"""Ending of the keys that older files lack, and that hold nothing trained."""


@dataclass(frozen=True)
class Match:
    """The tensors of a file by the names that a model has for them.

    Attributes:
        values: Tensors by the model's names; some may be none of the model's.
        origins: The name in the file of each.
        how: How the names differ, for messages; "" where they do not.
    """

    values: dict[str, Tensor]
    origins: dict[str, str]
    how: str


@dataclass(frozen=True)
class _Way:
    """One way to read the names: those below a prefix, each renamed."""

    prefix: str
    keys: list[str]
    rename: Callable[[str], str | None]
    how: str

    def __str__(self) -> str:
        named = f"keys that begin with {self.prefix}" if self.prefix else "keys without a prefix"
        return f"{named}, {self.how}" if self.how else named

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield the name that the model would have for each key, and the key."""
        for key in self.keys:
            name = self.rename(key[len(self.prefix) :])
            if name is not None:
                yield name, key


def match_names(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> Match:
    """Find the prefix, and the numbering of an ``nn.Sequential``, by which most tensors fit the model.

    Args:
        model: The model.
        state: Tensors by the names of the file.
        source: What the state is, for messages.

    Raises:
        ModelError: Different tensors fit the model equally well.
    """
    origins = _unwrapped(state, source)
    tensors = {key: state[origin] for key, origin in origins.items()}
    own = {k: v.shape for k, v in model.state_dict().items() if not k.endswith(COUNTER)}
    head = head_path(model) + "."
    body = {key: shape for key, shape in own.items() if not key.startswith(head)}
    below = sorted(_below_prefixes(origins).items(), key=lambda item: len(item[0]))
    ways = [_Way(prefix, keys, *renaming) for prefix, keys in below for renaming in _renames(model)]
    counts = [(_fitting(way, tensors, body), _fitting(way, tensors, own)) for way in ways]
    best = ways[counts.index(max(counts))]
    found = dict(best.names())
    for other, (count, _) in zip(ways, counts, strict=True):
        if 2 * count <= len(body) or count < max(counts)[0]:
            continue
        again = dict(other.names())
        both = found.keys() & again.keys() & body.keys()
        if not all(_same(tensors[found[name]], tensors[again[name]]) for name in both):
            raise ModelError(
                f"The weights of {source} fit the model in two ways, with different values: by the {best}, "
                f"and by the {other}. Save the state dict that is meant in a file of its own."
            )
    how = ", ".join(part for part in (f"below {best.prefix}" if best.prefix else "", best.how) if part)
    values = {name: tensors[key] for name, key in found.items()}
    return Match(values, {name: origins[key] for name, key in found.items()}, how)


def _fitting(way: _Way, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> int:
    """Count the tensors that a model has by such a name and in the same shape."""
    return sum(shapes.get(name) == tensors[key].shape for name, key in way.names())


def _unwrapped(state: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Return the file's name of each key by the name without wrappers that no network of ours has."""
    origins: dict[str, str] = {}
    for key, value in state.items():
        new = _OLD_DENSENET.sub(r"\1", _TRANSPARENT.sub("", key))
        before = origins.setdefault(new, key)
        if before != key and not _same(value, state[before]):
            raise ModelError(
                f"The weights of {source} hold {before} and {key}, which both are {new}, with different "
                "values. Save the state dict that is meant in a file of its own."
            )
    return origins


def _below_prefixes(keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Group keys by each prefix of wrappers and numbers that they begin with; "" has all."""
    below: dict[str, list[str]] = defaultdict(list, {"": list(keys)})
    for key in keys:
        end = 0
        for part in key.split(".", _DEEPEST)[:-1]:
            if part not in WRAPPERS and not part.isdecimal():
                break
            end += len(part) + 1
            below[key[:end]].append(key)
    return below


def _renames(model: nn.Module) -> Iterator[tuple[Callable[[str], str | None], str]]:
    """Yield what may have become of the model's own names."""
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
