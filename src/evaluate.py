"""``python -m src.evaluate``: how good a trained model is on labelled images, as an MLflow run of its own."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .utils.cli import CommandParser, run_command, warn, whole_number

if TYPE_CHECKING:
    from .inference.evaluator import Cases
    from .inference.trained import TrainedModel


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _evaluate(argv))


def _parser() -> CommandParser:
    from .inference.reference import add_model_arguments

    parser = CommandParser("python -m src.evaluate", __doc__.partition(": ")[2])
    add_model_arguments(parser)
    parser.add_argument(
        "--data", metavar="PATH", default="", help="labelled images; without it, those of the model's run"
    )
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="train, val, test (default), or all of --data"
    )
    parser.add_argument(
        "--explain",
        metavar="N",
        type=whole_number(1, 48),
        default=0,
        help="Grad-CAM overlays of the N most wrong and the N surest decisions",
    )
    return parser


def _evaluate(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    from .inference import evaluation
    from .inference.evaluator import judge, load_cases
    from .inference.explain import check_explainable
    from .inference.predict import refuse_bad, trained_model
    from .inference.reference import read_reference
    from .tracking import project_run_errors
    from .tracking.project_run import check_project_run
    from .tracking.run import tracked_run
    from .tracking.store import open_store

    with project_run_errors():
        check_project_run()
        reference = read_reference(args)
        with trained_model(reference, args.device, evaluation.ROLE) as (trained, _):
            layer = check_explainable(trained) if args.explain else None
            cases = load_cases(trained, args.data, args.split)
            _warn(trained, cases)
            judgement = judge(trained, cases)
            open_store()  # a checkpoint needs none until here
            with tracked_run(evaluation.tags_of(trained, judgement)) as run:
                folder = evaluation.record_evaluation(run, trained, judgement, layer, args.explain)
        evaluation.tell_version(trained, judgement, run.run_id)
        evaluation.show(judgement, trained)
        if cases.split in ("test", "all"):
            evaluation.show_looks(cases.split, cases.split_fingerprint)
        evaluation.show_place(run, folder)
        refuse_bad(cases.bad, folder)


def _warn(trained: "TrainedModel", cases: "Cases") -> None:
    from .tracking.names import DATA_FINGERPRINT

    for note in (*cases.notes, *trained.notes(cases.corrected)):
        warn(note)
    if cases.split == "train":
        warn("the model was trained on these images: this says how well it remembers")
    told = trained.run.tags.get(DATA_FINGERPRINT) if trained.run else cases.data_fingerprint
    if told != cases.data_fingerprint:
        warn(
            "these are other images, or another split, than the model's run saw: where they overlap with "
            "what it was trained on, the scores are too good"
        )


if __name__ == "__main__":
    sys.exit(main())
