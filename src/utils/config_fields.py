"""Types of single settings, with their validation."""

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

TAG_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Pattern of modalities and run names, which become names of folders and values of tags."""
_LONGEST_NAME = 255  # of a folder


def _plain_name(name: str) -> str:
    if not re.fullmatch(TAG_PATTERN, name) or ".." in name:
        raise ValueError(f"{name!r} may contain only letters, digits, '.', '_' and '-', and no '..'")
    return name


def _threshold(value: float | str) -> float | str:
    if isinstance(value, str):
        rule = re.fullmatch(r"(?:sensitivity|specificity)>=(0?\.\d+|1(?:\.0*)?)", value)
        if value != "youden" and (rule is None or float(rule[1]) <= 0):
            raise ValueError("use a number in (0, 1), youden, sensitivity>=0.90 or specificity>=0.90")
    elif not 0 < value < 1:
        raise ValueError(f"{value} is not between 0 and 1")
    return value


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("duplicate modality")
    return names


def _ascending(window: tuple[float, float]) -> tuple[float, float]:
    if not window[0] < window[1]:
        raise ValueError("low must be below high, such as [-160, 240]")
    return window


def _free_name(name: str) -> str:
    if name in {"logs", "cache"}:
        raise ValueError(f"{name!r} is a folder that all runs share; choose another name")
    return name


def is_run_name(name: str) -> bool:
    """Return whether a name from a store is valid for ``experiment.name``, and so names a single folder."""
    try:
        _free_name(_plain_name(name))
    except ValueError:
        return False
    return len(name) <= _LONGEST_NAME


def _milestones(values: tuple[int | float, ...]) -> tuple[int | float, ...]:
    are_epochs = all(isinstance(value, int) and value >= 1 for value in values)
    are_fractions = all(isinstance(value, float) and 0 < value < 1 for value in values)
    if list(values) != sorted(set(values)) or not (are_epochs or are_fractions):
        raise ValueError("milestones must be ascending epochs from 1, or ascending fractions below 1")
    return values


def _switch(value: object) -> object:
    """Undo YAML's conversion of a bare ``on`` or ``off`` to a boolean."""
    return ("on" if value else "off") if isinstance(value, bool) else value


EXCLUDE = (
    ".*",
    "@eaDir",
    "__MACOSX",
    "masks",
    "{stem}_mask.*",
    "{stem}_mask_*.*",
    "{stem}_seg.*",
    "{stem}_segmentation.*",
    "{stem}_superpixels.*",
)
"""Hidden files, previews of network drives, metadata of archives, and segmentation masks."""


def _of_names(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if not pattern or "/" in pattern or pattern.count("{stem}") > 1:
            raise ValueError(
                f"{pattern!r} must match the name of a file or folder, without /, such as '*_mask.png'"
            )
    return patterns


def _class_name(value: object) -> object:
    """Undo YAML's conversion of a bare ``0`` to a number; refuse ``true``, whose spelling is lost."""
    if isinstance(value, bool | float):
        raise ValueError(f"YAML reads this as {value!r}; quote the name: --set 'data.positive_class=\"...\"'")
    return str(value) if isinstance(value, int) else value


def _words(value: object) -> object:
    """Return one value or several values of a table as a tuple."""
    return tuple(map(_class_name, value if isinstance(value, list | tuple) else [value]))


def _distinct_labels(classes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    labels = Counter(label for group in classes.values() for label in group)
    if repeated := [label for label, count in labels.items() if count > 1]:
        raise ValueError(f"the label {repeated[0]!r} is listed more than once")
    if len(classes) < 2:
        raise ValueError("two classes or more are needed")
    return classes


ClassName = Annotated[str, BeforeValidator(_class_name)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)]
Classes = Annotated[dict[Annotated[str, Field(min_length=1)], Words], AfterValidator(_distinct_labels)]
Column = Annotated[str, Field(min_length=1)]
Patterns = Annotated[tuple[str, ...], AfterValidator(_of_names)]
Name = Annotated[str, AfterValidator(_plain_name)]
RunName = Annotated[Name, AfterValidator(_free_name)]
Modalities = Annotated[tuple[Name, ...], AfterValidator(_distinct)]
Window = Annotated[tuple[float, float], AfterValidator(_ascending)]
Means = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)]
Stds = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
Milestones = Annotated[tuple[int | float, ...], AfterValidator(_milestones)]
Threshold = Annotated[float | str, AfterValidator(_threshold)]
DeviceCache = Annotated[
    Literal["auto", "off"] | Annotated[float, Field(gt=0, lt=1)], BeforeValidator(_switch)
]
Compile = Annotated[Literal["off", "on", "auto"], BeforeValidator(_switch)]
