"""Which trained model a command is to use: of the registry, of a run, or of a checkpoint."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError


@dataclass(frozen=True)
class Reference:
    """One of three: ``model`` and ``modality`` (with or without a version), ``run_id``, ``checkpoint``."""

    model: str | None = None
    modality: str | None = None
    version: int | None = None
    run_id: str | None = None
    checkpoint: Path | None = None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `read_reference` reads."""
    parser.add_argument("--model", metavar="NAME", help="of the registered model, with --modality")
    parser.add_argument("--modality", metavar="TAG", help="of the registered model, with --model")
    parser.add_argument("--version", metavar="N", help="of the registered model; without it, its champion")
    parser.add_argument("--run", metavar="RUN_ID", help="instead: the model of a run")
    parser.add_argument("--checkpoint", metavar="FILE", help="instead: the weights of a best_model.pth")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def read_reference(args: argparse.Namespace) -> Reference:
    """What the options say; an option that is empty says nothing: ``mlflow run`` passes all of them.

    Raises:
        ConfigError: They name none, or more than one.
    """
    registered = bool(args.model or args.modality or args.version)
    if registered + bool(args.run) + bool(args.checkpoint) != 1:
        raise ConfigError("name one model: --model and --modality, or --run, or --checkpoint")
    if not registered:
        return Reference(
            run_id=args.run or None, checkpoint=Path(args.checkpoint) if args.checkpoint else None
        )
    if not (args.model and args.modality):
        raise ConfigError("a registered model is named by --model and --modality, such as resnet18 and A")
    if args.version and not (args.version.isdigit() and int(args.version) > 0):
        raise ConfigError(f"--version {args.version}: a number from 1 belongs here")
    return Reference(args.model, args.modality, int(args.version) if args.version else None)
