"""Runs of an earlier version, whose tables of predictions hold the class index as the label."""

from pathlib import Path

import pandas as pd
import pytest

from src.evaluation.predictions import read_predictions
from src.promote import main
from src.reporting.page import gather
from tests.promotion.conftest import aliases, champion_run, history
from tests.promotion.runs import Made, make_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sqlite")]


def as_before(made: Made) -> None:
    """Rewrite a run's table as the earlier version wrote it, the probabilities to the last digit."""
    (path,) = Path().glob(f"mlruns/0/{made.run_id}/artifacts/predictions/val.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    old = table.drop(columns="label").rename(columns={"label_index": "label"})
    assert list(old.columns) == ["sample", "patient", "label", "p_0", "p_1"]
    before = read_predictions(path)
    path.write_text(old.to_csv(index=False))
    after = read_predictions(path)
    assert (after.samples, after.labels.tolist()) == (before.samples, before.labels.tolist())
    assert after.probabilities.tobytes() == before.probabilities.tobytes()


def test_a_champion_of_an_earlier_version_competes(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(npz, 0.7)
    as_before(first)
    assert main([]) == 0
    assert champion_run() == first.run_id
    assert history()[0].verified == "logged model on the validation data"
    worse = make_run(npz, 0.5)  # of this version
    assert main([]) == 0
    assert champion_run() == first.run_id
    better = make_run(npz, 1.0)
    assert main([]) == 0
    assert champion_run() == better.run_id
    assert aliases() == {"champion": 2, "previous": 1}
    entry = history()[-1]
    assert entry.difference == pytest.approx(better.val_auc - first.val_auc)
    assert entry.p_value is not None  # by the paired test, which needs the tables of both
    assert 0 < entry.p_value < 1
    assert worse.val_auc < first.val_auc
    assert "cannot be tested" not in capsys.readouterr().out


def test_a_run_of_an_earlier_version_is_verified_against_its_model(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_before(make_run(npz, 1.0, logged_quality=0.5))
    assert main([]) == 1
    assert "its logged model give 0." in capsys.readouterr().out


def test_a_report_compares_tables_of_both_versions(npz: Path, folder: Path) -> None:
    as_before(make_run(npz, 1.0))
    assert main([]) == 0
    make_run(npz, 0.7)
    (report,) = gather("resnet18", "A", folder / "copies")
    assert report.champion is not None
    assert report.runner_up is not None
    assert report.champion.scores["val"]["auc"].value > report.runner_up.scores["val"]["auc"].value
    assert report.difference is not None
