"""What pydantic found wrong with a config, in a sentence for the user."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..errors import ConfigError

_LONG = 200


def explain(config: type[BaseModel], problem: dict[str, Any]) -> str:
    """Says what is wrong with a setting, by its dotted key.

    Args:
        config: The config that was to be made.
        problem: One of the ``errors()`` of pydantic's ``ValidationError``.
    """
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return _unknown_key(config, path)
    # Pydantic names the branch of a union in the path (``image_size.int``): only keys are ours.
    known = [part for part in path if part.isdigit() or re.fullmatch(r"[a-z_]+", part)]
    while known and known[-1] in {"int", "float", "str", "literal", "constrained"}:
        known.pop()
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(known) or 'config'}: {message} (got {_shown(problem['input'])})"


def relevant(problems: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what only confuses, unless nothing else is left.

    A tuple with a bad item is also reported as too short, and a number out of range also as not being the
    word (``auto``) that may stand in its place.
    """
    places = Counter(problem["loc"][:-1] for problem in problems)

    def confuses(problem: Mapping[str, Any]) -> bool:
        *place, branch = problem["loc"] or ("",)
        is_word = str(branch).startswith("literal[") and places[tuple(place)] > 1
        return problem["type"] == "too_short" or (is_word and not isinstance(problem["input"], str))

    return [dict(p) for p in problems if not confuses(p)] or [dict(p) for p in problems]


def check_text(settings: Mapping[str, Any], source: str) -> None:
    """Refuse a path or another text that is not UTF-8, which no store and no YAML can hold.

    Args:
        settings: Values by their dotted keys.
        source: Where they came from.

    Raises:
        ConfigError: There is one.
    """
    for key, value in settings.items():
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            shown = value.encode("utf-8", "backslashreplace").decode()
            raise ConfigError(
                f"{source}: {key}: {shown} is not text in UTF-8; rename the file or folder, or give a "
                "link to it that has a plain name (ln -s)"
            )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _unknown_key(config: type[BaseModel], path: list[str]) -> str:
    section = config
    for part in path[:-1]:
        annotation = section.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    prefix = "".join(f"{part}." for part in path[:-1])
    near = difflib.get_close_matches(path[-1], section.model_fields, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(section.model_fields)}"
    return f"{'.'.join(path)[:_LONG]}: unknown key; {hint}"
