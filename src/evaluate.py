"""``python -m src.evaluate``: scores of a trained model on labeled images, as its own MLflow run."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .utils.cli import CommandParser, command, command_main, warn, whole_number

if TYPE_CHECKING:
    from .inference.evaluator import LabeledImages
    from .inference.load_model import TrainedModel


def _parser() -> CommandParser:
    from .inference.model_reference import add_model_arguments

    parser = CommandParser(command("evaluate"), __doc__.partition(": ")[2])
    add_model_arguments(parser)
    parser.add_argument(
        "--data", metavar="PATH", default="", help="labeled images; without it, those of the model's run"
    )
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="train, val, test (default), or all of --data"
    )
    parser.add_argument(
        "--explain",
        metavar="N",
        type=whole_number(1, 48),
        default=0,
        help="Grad-CAM overlays of the N most wrong and the N most confident decisions",
    )
    return parser


@command_main
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = _parser().parse_args(argv)
    from .inference import evaluation_run
    from .inference.evaluator import evaluate, load_labeled_images
    from .inference.explain import check_explainable
    from .inference.model_reference import read_reference
    from .inference.predict import refuse_bad, trained_model
    from .tracking import project_run_errors
    from .tracking.project_run import check_project_run
    from .tracking.run import tracked_run
    from .tracking.store import open_store

    with project_run_errors():
        check_project_run()
        reference = read_reference(args)
        with trained_model(reference, args.device, evaluation_run.ROLE) as (trained, _):
            layer = check_explainable(trained) if args.explain else None
            labeled = load_labeled_images(trained, args.data, args.split)
            _warn(trained, labeled)
            result = evaluate(trained, labeled)
            open_store()  # a checkpoint needs none until here
            with tracked_run(evaluation_run.tags_of(trained, result)) as run:
                folder = evaluation_run.record_evaluation(run, trained, result, layer, args.explain)
        evaluation_run.tag_version(trained, result, run.run_id)
        evaluation_run.print_scores(result, trained)
        if labeled.split in ("test", "all"):
            evaluation_run.print_split_usage(labeled.split, labeled.split_fingerprint)
        evaluation_run.print_location(run, folder)
        refuse_bad(labeled.bad, folder)


def _warn(trained: "TrainedModel", labeled: "LabeledImages") -> None:
    from .tracking.names import DATA_FINGERPRINT

    for note in (*labeled.notes, *trained.notes(labeled.corrected)):
        warn(note)
    if labeled.split == "train":
        warn("the model was trained on these images, so the scores only show how well it remembers them")
    recorded = trained.run.tags.get(DATA_FINGERPRINT) if trained.run else labeled.data_fingerprint
    if recorded != labeled.data_fingerprint:
        warn(
            "the images or the split differ from those of the model's run: if they include images that it "
            "was trained on, the scores are too good"
        )


if __name__ == "__main__":
    sys.exit(main())
