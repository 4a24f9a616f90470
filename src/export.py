"""``python -m src.export``: a trained model as an ONNX file, checked against the network."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .utils.cli import CommandParser, command, command_main


def _parser() -> CommandParser:
    from .inference.model_reference import add_model_arguments

    parser = CommandParser(command("export"), __doc__.partition(": ")[2])
    add_model_arguments(parser)
    parser.add_argument("--output", metavar="FILE", default="model.onnx", help="an .onnx (model.onnx)")
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    from .inference.model_reference import read_reference
    from .inference.onnx_export import export_onnx
    from .inference.predict import trained_model
    from .tracking import project_run_errors
    from .utils.io import checked_output

    with project_run_errors():
        reference = read_reference(args)
        output = checked_output(Path(args.output), (".onnx",))
        with trained_model(reference, "cpu", "export") as (trained, folder):
            difference = export_onnx(trained, output, folder)
        print(
            f"{output}: takes uint8 pixels (N, {trained.network.spec.channels}, "
            f"{trained.network.spec.size}, {trained.network.spec.size}), gives {', '.join(trained.classes)}"
        )
        print(f"its probabilities differ from the network's by at most {difference:.1e}")


if __name__ == "__main__":
    sys.exit(main())
