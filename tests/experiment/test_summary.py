"""The summary says what its scores rest on."""

from pathlib import Path

import pytest
import torch

from src.data.dataset import load_dataset
from src.evaluation.metrics import evaluate, softmax
from src.experiment.summary import print_scores
from src.training.checkpoint import TrainerState
from src.training.scoring import Results, SplitScores
from src.utils.config import Config
from tests.images import write_folder


def test_few_patients_and_every_class_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 40, "test": 40})
    for path in sorted(root.glob("A/val/neg/*"))[1:]:
        path.unlink()
    for negative in root.glob("A/*/neg"):
        negative.rename(negative.with_name("a [red]"))  # markup, if it were read as such
    config = Config().updated({"data.root_dir": str(root)})
    dataset = load_dataset(config.data, folder / "cache")
    scored = {}
    for name in ("val", "test"):
        split = dataset.splits[name]
        logits = torch.linspace(-1, 1, 2 * len(split)).reshape(-1, 2).sin() * 9
        scored[name] = SplitScores(split, softmax(logits), evaluate(split.labels, logits, 0.5))
    state = TrainerState(epoch=1, best_epoch=1, best_val_auc=0.5)
    print_scores(dataset, state, Results(scored, 0.5), "youden")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "│ n of class a [red] " in shown
    assert "│ 1 image  " in shown
    note = "1 image of class a [red] in validation: specificity and AUC cannot be judged"
    assert note in " ".join(shown.split())
    assert "in test:" not in shown
    assert shown.count("no interval") == 1
    assert "the threshold was chosen on the validation split (youden)" in shown
