"""A public set as it is downloaded: from a look at it to predictions, without a script of one's own."""

from pathlib import Path

import pandas
import pytest

from tests.chest import write_chest
from tests.conftest import FROM_SCRATCH, Run

SETTINGS = {
    "data.classes": "{covid: [Pneumonia/Viral/COVID-19], other: [Pneumonia/Bacterial, No Finding]}",
    "data.where": "{view: [PA, AP]}",
    "data.image_size": "24",
}


@pytest.mark.slow
def test_from_a_table_to_predictions_in_three_commands(folder: Path, run_python: Run) -> None:
    write_chest(folder / "covid")
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    start = ["--config", "start.yaml", "--epochs", "1", "--promote"]
    looked = run_python("-m", "src.inspect", "covid", "--output", "start.yaml")
    assert looked.returncode == 0, looked
    trained = run_python("-m", "src.train", *start, *options, *FROM_SCRATCH)
    assert trained.returncode == 0, trained
    for note in (
        "data.where takes 79 of 99 rows (left out by view 20)",
        "data.classes leaves out 4 of 79 rows with other labels: Pneumonia/Viral/SARS 3, todo 1",
        "1 rows that repeat a file and agree with its first row are left out",
        "2 rows of 1 files are left out",
        "2 images are skipped",
        "the class other, the last by name, looks like the negative one; for sensitivity about covid, set "
        "data.positive_class=covid",
    ):
        assert note in trained.stderr
    assert "sensitivity is about the class other (data.positive_class)" in trained.stdout
    assert "resnet18_X-ray: version 1" in trained.stdout
    model = ["--model", "resnet18", "--modality", "X-ray"]
    predicted = run_python("-m", "src.predict", *model, "--input", "covid/metadata.csv")
    assert predicted.returncode == 1
    assert "images that cannot be read: 2, named above" in predicted.stderr
    table = pandas.read_csv("predictions.csv")
    assert {"image", "patient", "label", "p_covid", "p_other", "decision"} <= set(table.columns)
    assert len(table) == 77
    assert set(table["label"].dropna()) == {"covid", "other"}
