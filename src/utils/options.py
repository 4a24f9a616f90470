"""Options of a command that stand for settings."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config`` and what is said over it, but for ``--model`` and ``--modality``."""
    parser.add_argument("--config", metavar="FILE", help="YAML; config/default_config.yaml shows all")
    parser.add_argument("--data", metavar="PATH", help="demo, a folder, a manifest.csv, or a MedMNIST .npz")
    parser.add_argument("--epochs", metavar="N", help="passes over the training split")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any setting by its dotted key"
    )
    parser.add_argument("--overrides", metavar="LIST", default="", help="the same, comma-separated")


def changes_of(args: argparse.Namespace, model: str | None, modality: str | None) -> dict[str, Any]:
    """Return the settings that the options change, by dotted key.

    Raises:
        ConfigError: An option is malformed.
    """
    from .dotted import parse_overrides, split_overrides
    from .yaml_files import parse_yaml

    changes: dict[str, Any] = {}
    if model:
        changes["model.name"] = model
    if modality:
        changes["data.modalities"] = modality.split("+")
    if args.data:
        changes["data.root_dir"] = args.data
    if args.epochs:
        changes["training.epochs"] = parse_yaml(args.epochs, "--epochs")
    return changes | parse_overrides([*split_overrides(args.overrides), *args.set])


def config_of(args: argparse.Namespace, changes: Mapping[str, Any]) -> "Config":
    """Return the settings: ``changes`` over the file of ``--config`` over the defaults.

    Raises:
        ConfigError: A setting is wrong, or the file is.
    """
    from .config import Config
    from .dotted import merge_dotted

    if args.config is None:
        return Config.from_dict(merge_dotted({}, changes), "settings")
    return Config.from_file(args.config, changes)
