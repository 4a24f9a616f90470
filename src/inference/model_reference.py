"""Options that select a trained model: from the registry, a run, or a checkpoint."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..utils.cli import whole_number


@dataclass(frozen=True)
class ModelReference:
    """A model, named by ``model`` and ``modality`` (perhaps ``version``), ``run_id``, or ``checkpoint``."""

    model: str | None = None
    modality: str | None = None
    version: int | None = None
    run_id: str | None = None
    checkpoint: Path | None = None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_reference` reads."""
    parser.add_argument("--model", metavar="NAME", help="name of a registered model; needs --modality")
    parser.add_argument("--modality", metavar="TAG", help="modality of the registered model; needs --model")
    parser.add_argument(
        "--version",
        metavar="N",
        type=whole_number(1),
        help="version of the registered model (default: the champion)",
    )
    parser.add_argument("--run", metavar="RUN_ID", help="use the model of this run instead")
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="use the weights of a best_model.pth instead"
    )
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def read_reference(args: argparse.Namespace) -> ModelReference:
    """Return the model that the options name.

    Raises:
        ConfigError: The options select no model, or more than one.
    """
    is_registered = any((args.model, args.modality, args.version))
    if is_registered + bool(args.run) + bool(args.checkpoint) != 1:
        raise ConfigError("name one model: --model and --modality, or --run, or --checkpoint")
    if is_registered and not (args.model and args.modality):
        raise ConfigError("a registered model is named by --model and --modality, such as resnet18 and A")
    return ModelReference(args.model, args.modality, args.version, args.run, args.checkpoint)
