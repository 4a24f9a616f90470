"""Options of a command that stand for settings."""

import argparse
from collections.abc import Mapping
from pathlib import Path
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
    """What the options ask for, by dotted key; an option that is empty says nothing.

    Raises:
        ConfigError: An option is malformed.
    """
    from .dotted import parse_overrides, split_overrides
    from .yaml_files import parse_yaml

    # `mlflow run` passes all of them.
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
    """Settings by precedence: --set over named options over the file over defaults.

    Raises:
        ConfigError: A setting is wrong, or the file is.
    """
    from .config import Config
    from .config_history import modernized
    from .dotted import merge_dotted
    from .yaml_files import read_yaml

    values = modernized(read_yaml(Path(args.config)), args.config) if args.config else {}
    return Config.from_dict(merge_dotted(values, changes), args.config or "settings")
