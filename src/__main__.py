"""``mlproject COMMAND``, or ``python -m src COMMAND``: start a command of this package."""

import sys
from collections.abc import Sequence
from importlib import import_module

from . import PACKAGE
from .utils.cli import command

COMMANDS = {
    "train": "one training run",
    "sweep": "a hyperparameter search",
    "promote": "register the best run of each model and modality",
    "predict": "probabilities and decisions for images",
    "evaluate": "scores on labeled images",
    "extract": "features of images",
    "export": "an ONNX file of a trained model",
    "inspect": "what a folder or table holds, and a config to start with",
    "report": "one HTML page on runs and champions",
    "cleanup": "free disk space of old runs",
    "store": "maintain the tracking store: sync, doctor, relocate",
    "verify": "check that a resumed training run is exact",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Start the command that the first argument names and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in COMMANDS:
        status: int = import_module(f".{name}", PACKAGE).main(arguments[1:])
        return status
    usage = [f"usage: {command('COMMAND [OPTIONS]')}", ""]
    usage += [f"  {name:10}{text}" for name, text in COMMANDS.items()]
    if name in ("-h", "--help"):
        print("\n".join([*usage, "", "COMMAND --help lists the options of a command."]))
        return 0
    print(f"error: {name}: not a command; --help lists the commands", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
