"""``python -m src.inspect``: what a folder, a table or an .npz holds, and a config to start with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .utils.cli import CommandParser, command, command_main


def _parser() -> CommandParser:
    parser = CommandParser(command("inspect"), __doc__.partition(": ")[2])
    parser.add_argument("path", metavar="PATH", help="a folder, a table (.csv, .tsv) or an .npz")
    parser.add_argument("--output", metavar="FILE", help="write the config to this .yaml")
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    # Imported late: the readers of images take time to load, and --help needs none.
    from .data.inspection import inspect
    from .errors import DataError
    from .utils.io import atomic_write_text, checked_output

    output = checked_output(Path(args.output), (".yaml", ".yml")) if args.output else None
    proposal = inspect(args.path)
    print("\n".join(proposal.lines()))
    config = proposal.to_yaml(args.path)
    if config is None:
        raise DataError(f"{args.path}: no config to start with; the problems above say why")
    print(f"\n{config}")
    if output is None:
        print(f"to use it: {command('inspect')} {args.path} --output start.yaml")
    else:
        atomic_write_text(output, config)
        first = "" if proposal.is_ready else "solve the problems above, then "
        print(f"next: {first}{command('train')} --config {output} --dry-run")


if __name__ == "__main__":
    sys.exit(main())
