"""Settings as older versions stored them, in today's words."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

EARLIER: dict[str, dict[str, Any]] = {
    "data": {
        "exclude": [".*", "*.jpe", "*.jfif", "*.webp", "*.gif", "*.jp2", "*.j2k", "*.pgm", "*.ppm"],
        "fit": "legacy",
        "stratify": "patients",
    },
    "training": {"backbone_learning_rate": None},
    "model": {"channel_adaptation": "summed"},
}
"""What was done before there was a setting for it."""
_STORED = {
    "data": {"root_dir", "modalities", "val_fraction", "split_seed", "on_leak", "cache_dir", "augment"},
    "training": {"epochs", "batch_size", "learning_rate", "optimizer", "schedule", "seed", "deterministic"},
}
"""Settings that every stored config holds, and that no one writes all by hand."""


def modernized(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``values`` as they are named today: ``model.pretrained: true | false`` is ``model.weights``.

    A stored config holds every setting of its time; what it lacks is what was done then: without
    ``data.exclude`` it leaves out what was left out, without ``data.fit`` it shows images as they were
    shown, without ``data.stratify`` it splits as was done, without ``training.backbone_learning_rate`` one
    rate is that of all, and without ``model.channel_adaptation`` it adapts filters as was done.

    Raises:
        ConfigError: ``model.pretrained`` is neither, or stands beside ``model.weights``.
    """
    sections = {name: section for name, section in values.items() if isinstance(section, Mapping)}
    stored = [name for name, keys in _STORED.items() if sections.get(name, {}).keys() >= keys]
    if stored and "model" in sections:
        stored.append("model")  # every version stored it, some with no more than a person writes
    values = {**values, **{name: {**EARLIER[name], **sections[name]} for name in stored}}
    model = values.get("model")
    if not (isinstance(model, Mapping) and "pretrained" in model):
        return dict(values)
    pretrained = model["pretrained"]
    if not isinstance(pretrained, bool) or "weights" in model:
        raise ConfigError(f"{source}: model.pretrained is true or false, and excludes model.weights")
    rest = {key: value for key, value in model.items() if key != "pretrained"}
    return {**values, "model": {**rest, "weights": "imagenet" if pretrained else "none"}}
