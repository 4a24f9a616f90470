"""``python -m src.predict``: probabilities and decisions of a trained model for images."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .utils.cli import CommandParser, command, command_main, counted


def _parser() -> CommandParser:
    from .inference.model_reference import add_model_arguments

    parser = CommandParser(command("predict"), __doc__.partition(": ")[2])
    add_model_arguments(parser)
    parser.add_argument("--input", metavar="PATH", help="an image, a folder, a table (.csv), or an .npz")
    parser.add_argument(
        "--output", metavar="FILE", default="predictions.csv", help="a .csv or .parquet (predictions.csv)"
    )
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    # Imported late: torch and MLflow take seconds to load, and --help needs neither.
    from .inference.model_reference import read_reference
    from .inference.predict import predictions, read_inputs, refuse_bad, trained_model, write_table
    from .tracking import project_run_errors
    from .utils.io import checked_output

    with project_run_errors():
        reference = read_reference(args)
        output = checked_output(Path(args.output), (".csv", ".parquet"))
        with trained_model(reference, args.device, "predict") as (trained, _):
            inputs = read_inputs(args, trained)
            table = predictions(trained, inputs)
        write_table(table, output)
        counts = ", ".join(f"{name} {(table['decision'] == name).sum()}" for name in trained.classes)
        print(f"{output}: {counted(len(table), 'image')}; decided {counts}")
        refuse_bad(inputs.bad, output)


if __name__ == "__main__":
    sys.exit(main())
