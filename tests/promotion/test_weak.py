"""A champion whose interval reaches 0.5, or cannot be computed, is marked everywhere, and decided as ever."""

from pathlib import Path

import mlflow
import pytest
import yaml

from src import report
from src.promote import main
from src.utils.config import Config
from src.utils.io import sha256
from tests.images import write_npz
from tests.promotion.conftest import aliases, snapshot
from tests.promotion.runs import make_run

pytestmark = pytest.mark.usefixtures("sqlite")

RECORD = Path("config/best_hparams/resnet18_A.yaml")
MARK = "weak evidence"


def marks(number: int) -> tuple[bool, bool]:
    """Whether tag and description of a version say it."""
    version = mlflow.MlflowClient().get_model_version("resnet18_A", str(number))
    return version.tags.get("evidence") == MARK, MARK in str(version.description)


def recorded() -> object:
    return yaml.safe_load(RECORD.read_text())["best_metrics"].get("evidence")


@pytest.mark.slow
def test_the_mark_is_of_the_version_through_promotion_rollback_and_restoration(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = make_run(npz, 0.0)
    assert main([]) == 0
    assert MARK in capsys.readouterr().out
    assert (marks(1), recorded()) == ((True, True), MARK)
    assert Config.from_file(RECORD).model.name == "resnet18"
    assert report.main([]) == 0
    assert f"{weak.run_id}</code> ({MARK})" in Path("report.html").read_text()
    make_run(npz, 1.0)
    assert main([]) == 0
    assert (marks(2), recorded()) == ((False, False), None)
    assert report.main([]) == 0
    assert MARK not in Path("report.html").read_text()
    assert main(["--rollback", "--model", "resnet18", "--modality", "A"]) == 0
    assert (marks(1), recorded(), aliases()["champion"]) == ((True, True), MARK, 1)
    before = RECORD.read_bytes()
    RECORD.unlink()
    assert main([]) == 0
    assert RECORD.read_bytes() == before
    assert main(["--check"]) == 0


def test_an_auc_of_too_few_images_for_an_interval_is_weak(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(write_npz(folder / "few.npz", val=6), 1.0)
    assert main(["--dry-run"]) == 0
    assert MARK in capsys.readouterr().out
    assert main([]) == 0
    assert (marks(1), recorded()) == ((True, True), MARK)


def test_a_champion_of_an_earlier_version_needs_no_mark(npz: Path, folder: Path) -> None:
    make_run(npz, 0.0)
    assert main([]) == 0
    text = RECORD.read_text().replace(f"  evidence: {MARK}\n", "")
    assert MARK not in text
    RECORD.write_text(text)
    client = mlflow.MlflowClient()
    client.delete_model_version_tag("resnet18_A", "1", "evidence")
    client.set_model_version_tag("resnet18_A", "1", "yaml.sha256", sha256(text.encode()))
    before = snapshot(folder)
    assert main(["--check"]) == 0
    assert main([]) == 0
    assert snapshot(folder) == before
