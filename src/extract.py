"""``python -m src.extract``: features of images from a layer of a trained model."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .utils.cli import CommandParser, command, command_main, counted

_ARRAY = ".npy"


def _parser() -> CommandParser:
    from .inference.model_reference import add_model_arguments

    parser = CommandParser(command("extract"), __doc__.partition(": ")[2])
    add_model_arguments(parser)
    parser.add_argument("--input", metavar="PATH", help="an image, a folder, a table (.csv), or an .npz")
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="features.parquet",
        help="a .parquet or .csv, or an .npy with a .csv of the images next to it (features.parquet)",
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="layer whose output is taken (default: the input of the last layer)"
    )
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    from .inference.model_reference import read_reference
    from .inference.predict import features, read_inputs, refuse_bad, trained_model, write_features
    from .tracking import project_run_errors
    from .utils.io import checked_output

    with project_run_errors():
        reference = read_reference(args)
        output = checked_output(Path(args.output), (".parquet", ".csv", _ARRAY))
        with trained_model(reference, args.device, "extract") as (trained, _):
            inputs = read_inputs(args, trained)
            table, found = features(trained, inputs, args.layer)
        write_features(table, found, output)
        print(f"{output}: {counted(found.shape[0], 'image')}, {counted(found.shape[1], 'feature')} each")
        refuse_bad(inputs.bad, output)


if __name__ == "__main__":
    sys.exit(main())
