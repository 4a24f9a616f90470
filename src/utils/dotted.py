"""Settings by their dotted keys: flattened, laid over others, read from a command line."""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .yaml_files import parse_yaml


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One value per dotted key, such as ``training.learning_rate``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def merge_dotted(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` (nested) with the dotted keys of ``changes`` laid over them.

    Raises:
        ConfigError: A key leads below something that is no section.
    """
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for dotted, value in changes.items():
        head, _, rest = dotted.partition(".")
        below = merged.get(head)
        if rest and not (below is None or isinstance(below, Mapping)):
            raise ConfigError(f"{head}: settings such as {dotted} belong below it (got {below!r})")
        merged[head] = (
            merge_dotted(below if isinstance(below, Mapping) else {}, {rest: value}) if rest else value
        )
    return merged


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """Reads ``dotted.key=value`` items; values are YAML, so ``1e-4``, ``null`` and ``[A, P]`` work.

    Raises:
        ConfigError: An item has no ``=``, or its value is no YAML.
    """
    changes: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: write it as dotted.key=value, such as training.epochs=5")
        changes[key.strip()] = parse_yaml(text, source=f"--set {item}")
    return changes


def split_overrides(text: str) -> list[str]:
    """Splits a comma-separated list of overrides; commas inside a value such as ``[A, P]`` stay."""
    return [item for item in re.split(r",(?=\s*[a-z_]+(?:\.[a-z_]+)+=)", text) if item.strip()]
