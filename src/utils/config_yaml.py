"""Read settings: size-limited YAML, overrides with dotted keys, and readable pydantic errors."""

import difflib
import io
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ..errors import ConfigError
from .io import open_regular
from .limits import CONFIG_BYTES, CONFIG_DEPTH, CONFIG_NUMBER, CONFIG_VALUES
from .project import find_config

_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_MAX_SHOWN = 200  # characters of a value or an error in a message


class _LimitExceededError(ValueError):
    """A limit is exceeded; the message says which one."""


class _Loader(yaml.SafeLoader):
    """Safe loader that checks limits while it parses, so that a small file cannot use much memory or time."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0
        self._anchored: dict[str, int] = {}
        self._limits = (CONFIG_VALUES, CONFIG_VALUES.value), (CONFIG_DEPTH, CONFIG_DEPTH.value)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        event, before = self.peek_event(), self._values  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        # An alias counts like its target, because readers of the result visit the target each time.
        self._values += self._anchored.get(event.anchor, 1) if is_alias else 1
        self._depth += 1
        for (limit, most), amount in zip(self._limits, (self._values, self._depth), strict=True):
            if amount > most:
                raise _LimitExceededError(limit.excess(amount))
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and event.anchor not in self._anchored:
            raise yaml.composer.ComposerError(
                problem=f"the alias {event.anchor!r} refers to itself",
                problem_mark=event.start_mark,
            )
        if event.anchor is not None and not is_alias:
            self._anchored[event.anchor] = self._values - before
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:  # noqa: ANN401
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        # YAML 1.1 reads 1:30 as 90; the time to do so grows with the square of the length.
        if node.tag in _NUMBERS and (excess := CONFIG_NUMBER.excess(len(node.value))):
            raise _LimitExceededError(excess)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":
                raise yaml.constructor.ConstructorError(
                    problem=f"YAML reads the key {key.value} as a truth value; quote it: '{key.value}'",
                    problem_mark=key.start_mark,
                )
        keys = Counter(
            key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE
        )
        repeated = sorted(key for key, count in keys.items() if count > 1)
        if repeated:
            raise yaml.constructor.ConstructorError(
                problem=f"duplicate key {repeated[0]!r}", problem_mark=node.start_mark
            )
        return node


# In YAML 1.1, which PyYAML follows, a float needs a dot and a signed exponent; users write 1e-4.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401 -- any YAML value
    """Return the value of a YAML text.

    Raises:
        ConfigError: The text is not valid YAML, has a tag of a Python object, or exceeds a limit.
    """
    try:
        return _Loader(text).get_single_data()
    except _LimitExceededError as error:
        raise ConfigError(f"{source}: refused as too large: {error}") from None
    except yaml.constructor.ConstructorError as error:
        problem = str(error.problem).replace(
            "could not determine a constructor for the tag", "refused the tag"
        )
        raise ConfigError(
            f"{source}: only plain YAML values are read: {problem[:_MAX_SHOWN]}{_place(error)}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = str(getattr(error, "problem", None) or error).splitlines()[0][:_MAX_SHOWN]
        raise ConfigError(f"{source}: not valid YAML: {problem}{_place(error)}") from None


def read_config_text(path: Path) -> str:
    """Return the text of a config file.

    Raises:
        ConfigError: The file is missing, unreadable, not a regular file or too large.
    """
    try:
        with open_regular(find_config(path)) as file:
            data = file.read(CONFIG_BYTES.value + 1)
        if excess := CONFIG_BYTES.excess(len(data)):
            raise ConfigError(f"{path}: refused as too large: {excess}")
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()  # with any line ends
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" ({path.absolute()})"
        raise ConfigError(f"{path}: config file not found{where}; copy config/default_config.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: The file is missing, unreadable, too large, not valid YAML, or not a mapping.
    """
    values = parse_yaml(read_config_text(path), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds a {type(values).__name__} where sections such as 'training:' belong"
        )
    return {str(key): value for key, value in values.items()}


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


def flatten(values: Mapping[str, Any], prefix: str = "", mappings: Collection[str] = ()) -> dict[str, Any]:
    """Return one value per dotted key, such as ``training.learning_rate``; ``mappings`` are kept whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and prefix + key not in mappings:
            flat.update(flatten(value, f"{prefix}{key}.", mappings))
        else:
            flat[prefix + key] = value
    return flat


def merge_dotted(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested ``values`` with the dotted keys of ``changes`` replaced.

    Raises:
        ConfigError: A dotted key names a setting inside of something that is not a section.
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
    """Read ``dotted.key=value`` items; values are YAML, so ``1e-4``, ``null`` and ``[A, P]`` work.

    Raises:
        ConfigError: An item has no ``=``, or its value is not valid YAML.
    """
    changes: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: write it as dotted.key=value, such as training.epochs=5")
        changes[key.strip()] = parse_yaml(text, source=f"--set {item}")
    return changes


def split_overrides(text: str) -> list[str]:
    """Split a comma-separated list of overrides; commas inside a value such as ``[A, P]`` stay."""
    return [item for item in re.split(r",(?=\s*[a-z_]+(?:\.[a-z_]+)+=)", text) if item.strip()]


def describe_error(config: type[BaseModel], problem: dict[str, Any]) -> str:
    """Return a message with the dotted key for one of the ``errors()`` of pydantic's ``ValidationError``.

    Args:
        config: The class whose validation failed.
        problem: The error.
    """
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return _unknown_key(config, path)
    # Pydantic adds the branch of a union to the path (``image_size.int``); only the keys are shown.
    known = [part for part in path if part.isdigit() or re.fullmatch(r"[a-z_]+", part)]
    while known and known[-1] in {"int", "float", "str", "literal", "constrained"}:
        known.pop()
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(known) or 'config'}: {message} (got {_shown(problem['input'])})"


def drop_follow_up_errors(problems: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the errors without misleading consequences of others.

    A tuple with a bad item is also reported as too short, and a number out of range also as not equal to the
    alternative word (``auto``).
    """
    places = Counter(problem["loc"][:-1] for problem in problems)

    def is_misleading(problem: Mapping[str, Any]) -> bool:
        *place, branch = problem["loc"] or ("",)
        is_word = str(branch).startswith("literal[") and places[tuple(place)] > 1
        return problem["type"] == "too_short" or (is_word and not isinstance(problem["input"], str))

    return [dict(p) for p in problems if not is_misleading(p)] or [dict(p) for p in problems]


def check_utf8(settings: Mapping[str, Any], source: str) -> None:
    """Refuse text that is not valid UTF-8, such as a path, because stores and YAML cannot represent it.

    Args:
        settings: Values by their dotted keys.
        source: Where they came from, for messages.

    Raises:
        ConfigError: A value is not valid UTF-8.
    """
    for key, value in settings.items():
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            shown = value.encode("utf-8", "backslashreplace").decode()
            raise ConfigError(
                f"{source}: {key}: {shown} is not valid UTF-8; rename the file or folder, or use a "
                "link to it with another name (ln -s)"
            )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _unknown_key(config: type[BaseModel], path: list[str]) -> str:
    section = config
    for part in path[:-1]:
        annotation = section.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    prefix = "".join(f"{part}." for part in path[:-1])
    near = difflib.get_close_matches(path[-1], section.model_fields, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(section.model_fields)}"
    return f"{'.'.join(path)[:_MAX_SHOWN]}: unknown key; {hint}"
