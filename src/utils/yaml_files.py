"""YAML as the project reads it: safe, ``1e-4`` is a number, a repeated key is an error."""

import re
from pathlib import Path
from typing import Any

import yaml

from src.errors import ConfigError

MAX_BYTES = 1_000_000
"""A config is a few kB; more is some other file, or one made to exhaust memory."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {repeated[0]!r} stands there twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where a float needs a dot and a signed exponent; people write 1e-4.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401 -- any YAML value
    """The value of a YAML text.

    Raises:
        ConfigError: The text is no YAML, or asks for a Python object.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.constructor.ConstructorError as error:
        problem = str(error.problem).replace(
            "could not determine a constructor for the tag", "refused the tag"
        )
        raise ConfigError(f"{source}: only plain YAML values are read: {problem}{_place(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {_first_line(error)}{_place(error)}") from None


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigError: The file is missing, unreadable or too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes, so it is no config")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; config/default_config.yaml is one to copy") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: The file is missing, unreadable, too large, no YAML, or no mapping.
    """
    values = parse_yaml(read_text(path), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds a {type(values).__name__} where sections such as 'training:' belong"
        )
    return {str(key): value for key, value in values.items()}


def _first_line(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
