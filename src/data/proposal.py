"""What ``src.inspect`` says about a data source: findings, problems, and a config to start with."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..utils.config import Config
from ..utils.config_fields import TAG_PATTERN

WIDTH = 100
_INDENT = "  "
_NOT_MIRRORED = re.compile(r"ct|cr|dx|rf|rg|xa|cxr|x-?ray", re.IGNORECASE)


@dataclass
class Proposal:
    """Findings on a data source.

    Attributes:
        findings: What is there, one sentence each.
        problems: What training would refuse or leave out, and what to do.
        data: The data section of a config; None if no labeled images were found.
        comments: Lines to write above a setting of the section, by its name.
        is_ready: Whether training takes the data with this config.
    """

    findings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    data: dict[str, Any] | None = None
    comments: dict[str, list[str]] = field(default_factory=dict)
    is_ready: bool = True

    def lines(self) -> list[str]:
        """Return the text to print, at most `WIDTH` characters wide where words allow it."""
        problems = self.problems or ["none found"]
        return [*_wrapped("found", self.findings), *_wrapped("problems", problems)]

    def to_yaml(self, path: str) -> str | None:
        """Return the config as YAML with comments, after checking that it is valid."""
        if self.data is None:
            return None
        Config.from_dict({"data": self.data}, "the proposed config")
        title = f"A config to start with, for {path}. config/default_config.yaml explains all settings."
        if not self.is_ready:
            title += " Training refuses the data until the problems that inspect has printed are solved."
        lines = [*_comment(title, ""), "data:"]
        for name, value in self.data.items():
            for comment in self.comments.get(name, []):
                lines += _comment(comment, _INDENT)
            lines += textwrap.indent(_dump({name: value}), _INDENT).splitlines()
        return "\n".join(lines) + "\n"


def tag_of(name: str) -> str:
    """Return a valid name of a modality for any text, such as X-ray for itself and CT-MR for CT/MR."""
    tag = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", name).strip("-._")
    return tag if re.fullmatch(TAG_PATTERN, tag) else "A"


def is_not_mirrored(modality: str) -> bool:
    """Return whether images of a modality must not be mirrored: CT and X-ray."""
    return _NOT_MIRRORED.fullmatch(modality) is not None


def counts(values: Mapping[str, int], most: int = 8) -> str:
    """Return values with their counts, the most frequent first."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name or '(empty)'} {count}" for name, count in ordered[:most])
    return shown + f" and {len(ordered) - most} more" * (len(ordered) > most)


def _dump(value: object) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=WIDTH - len(_INDENT))
    return text


def _printable(text: str) -> str:
    """Return text from a file without control characters, which a terminal or YAML would interpret."""
    return "".join(character if character.isprintable() else " " for character in text)


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    text = _printable(text)
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _wrapped(title: str, sentences: list[str]) -> list[str]:
    lines = [f"{title}:"]
    for sentence in sentences:
        first, *below = sentence.splitlines()
        lines += _paragraph(first, "  - ")
        for part in below:
            lines += _paragraph(part.strip().removeprefix("- "), "    - ")
    return lines


def _paragraph(text: str, start: str) -> list[str]:
    indent = " " * len(start)
    return textwrap.wrap(
        _printable(text),
        WIDTH,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
