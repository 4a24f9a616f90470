"""A public set as it is downloaded: from a look at it to predictions, without a script of one's own."""

from pathlib import Path

import pandas
import pytest

from tests.chest import write_chest
from tests.conftest import FROM_SCRATCH, Run

FAST = ["--epochs", "2", "--set", "data.image_size=24", *FROM_SCRATCH]
CLASSES = "data.classes={covid: [Pneumonia/Viral/COVID-19], other: [Pneumonia/Bacterial, No Finding]}"


@pytest.mark.slow
def test_from_a_table_to_predictions_in_five_commands(folder: Path, run_python: Run) -> None:
    write_chest(folder / "covid")
    settings = ["--config", "start.yaml", "--set", CLASSES, "--set", "data.where={view: [PA, AP]}"]
    commands = [
        ["src.inspect", "covid", "--output", "start.yaml"],
        ["src.train", *settings, *FAST, "--dry-run"],
        ["src.train", *settings, *FAST, "--set", "data.positive_class=covid"],
        ["src.promote"],
        ["src.predict", "--model", "resnet18", "--modality", "X-ray", "--input", "covid/metadata.csv"],
    ]
    done = []
    for command in commands:
        done.append(run_python("-m", *command))
        assert done[-1].returncode == (1 if command[0] == "src.predict" else 0), done[-1]
    plan, training, promotion, prediction = done[1:]
    assert "the class other, the last by name, looks like the negative one" in plan.stderr
    assert "data.positive_class=covid" in plan.stderr
    assert "sensitivity is about the class covid" in training.stdout
    assert "looks like the negative" not in training.stderr
    for note in (
        "data.where takes 77 of 99 rows (left out by view 22)",
        "1 rows that repeat a file and agree with its first row are left out",
        "2 rows of 1 files are left out",
        "2 images are skipped",
    ):
        assert note in training.stderr
    assert Path("config/best_hparams/resnet18_X-ray.yaml").is_file()
    assert "champion" in promotion.stdout
    table = pandas.read_csv("predictions.csv")
    assert {"image", "patient", "label", "p_covid", "p_other", "decision"} <= set(table.columns)
    assert set(table["decision"]) <= {"covid", "other"}
    assert "images that cannot be read: 2" in prediction.stderr
