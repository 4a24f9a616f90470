"""Settings as older versions stored them, in today's words."""

from collections.abc import Mapping
from typing import Any

from src.errors import ConfigError

_EXCLUDE = (".*", "*.jpe", "*.jfif", "*.webp", "*.gif", "*.jp2", "*.j2k", "*.pgm", "*.ppm")
"""What was left out by runs that were stored before there was such a setting."""
_STORED = frozenset(
    {"root_dir", "modalities", "val_fraction", "split_seed", "on_leak", "cache_dir", "augment"}
)
"""Settings of data that every stored config holds, and that no one writes all by hand."""


def modernized(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``values`` as they are named today: ``model.pretrained: true | false`` is ``model.weights``.

    A stored config holds every setting of its time; without ``data.exclude`` it leaves out what was left
    out then, and without ``model.channel_adaptation`` it adapts filters as was done then.

    Raises:
        ConfigError: ``model.pretrained`` is neither, or stands beside ``model.weights``.
    """
    model, data = values.get("model"), values.get("data")
    if isinstance(data, Mapping) and data.keys() >= _STORED:
        if "exclude" not in data:
            values = {**values, "data": {**data, "exclude": list(_EXCLUDE)}}
        if isinstance(model, Mapping) and "channel_adaptation" not in model:
            model = {**model, "channel_adaptation": "summed"}
            values = {**values, "model": model}
    if not (isinstance(model, Mapping) and "pretrained" in model):
        return dict(values)
    pretrained = model["pretrained"]
    if not isinstance(pretrained, bool) or "weights" in model:
        raise ConfigError(f"{source}: model.pretrained is true or false, and excludes model.weights")
    rest = {key: value for key, value in model.items() if key != "pretrained"}
    return {**values, "model": {**rest, "weights": "imagenet" if pretrained else "none"}}
