"""``python -m src.report``: one HTML page on runs and champions, with everything in it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .utils.cli import CommandParser, command, command_main


def _parser() -> CommandParser:
    parser = CommandParser(command("report"), __doc__.partition(": ")[2])
    parser.add_argument("--model", metavar="NAME", help="only runs of this model")
    parser.add_argument("--modality", metavar="TAG", help="only runs of this modality")
    parser.add_argument("--output", metavar="FILE", default="report.html", help="an .html (report.html)")
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    import tempfile

    from .reporting.page import gather, render
    from .tracking import project_run_errors
    from .tracking.project_run import mark_project_run
    from .tracking.store import open_store, shown_uri
    from .utils.io import atomic_write_text, checked_output

    with project_run_errors(), tempfile.TemporaryDirectory(prefix="mlproject-") as folder:
        output = checked_output(Path(args.output), (".html",))
        open_store(must_exist=True)
        mark_project_run("report")
        reports = gather(args.model, args.modality, Path(folder))
        if not reports:
            raise UserError(f"{shown_uri()}: no finished training run of such a model and modality")
        atomic_write_text(output, render(reports, shown_uri()))
    runs = sum(report.runs for report in reports)
    print(f"{output}: {len(reports)} groups, {runs} runs")


if __name__ == "__main__":
    sys.exit(main())
