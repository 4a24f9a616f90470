"""The same commands on each kind of store: SQLite, plain files, a server over HTTP."""

from pathlib import Path

import mlflow
import pytest
import yaml

from src.promote import main
from src.tracking import queries
from src.tracking.queries import count_runs, find_candidates
from src.tracking.store import open_store
from tests.forked import Forked
from tests.promotion.conftest import actions, aliases, champion_run, history, version_count
from tests.promotion.runs import make_run

pytestmark = pytest.mark.slow

RECORD = Path("config/best_hparams/resnet18_A.yaml")
BACK = ["--rollback", "--model", "resnet18", "--modality", "A"]


def test_from_the_first_promotion_to_a_rollback(
    any_store: str, npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_PAGE", 2)  # so that a server's answer has several pages
    first = make_run(npz, 0.5)
    assert main([]) == 0
    assert champion_run() == first.run_id
    for quality in (0.3, 0.3, 0.3):
        make_run(npz, quality)
    best = make_run(npz, 1.0)
    make_run(npz, 0.7, status="FAILED")
    assert main([]) == 0
    assert aliases() == {"champion": 2, "previous": 1}
    assert yaml.safe_load(RECORD.read_text())["mlflow"]["run_id"] == best.run_id
    assert main(["--check"]) == 0
    written = RECORD.read_bytes()
    RECORD.unlink()
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert RECORD.read_bytes() == written
    assert main(BACK) == 0
    assert champion_run() == first.run_id
    assert main([]) == 0
    assert champion_run() == first.run_id
    assert main(["--check"]) == 0
    assert version_count() == 2
    assert actions() == [("promotion", 1), ("promotion", 2), ("rollback", 1)]
    if any_store == "server":
        assert {path.name for path in Path().iterdir()} == {"config"}


@pytest.mark.usefixtures("any_store")
def test_a_version_that_cannot_be_loaded_is_refused_everywhere(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(npz, 1.0, logged_quality=0.3)
    assert main([]) == 1
    assert "its logged model give" in capsys.readouterr().out
    assert not RECORD.exists()


@pytest.mark.usefixtures("sqlite")
def test_the_database_and_the_search_find_the_same(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(npz, 0.5)
    make_run(npz, 0.7, modality="P", experiment="other", start_time=5)
    make_run(npz, 0.6, tags={"data.allowed_leaks": "2"})
    make_run(npz, 1.0, status="FAILED")
    make_run(npz, 1.0, status=None)
    make_run(npz, 1.0, tags={"role": "evaluation"})
    make_run(npz, 1.0, tags={"data.fingerprint": None})
    for claim in (float("nan"), float("inf"), -0.1, 1.1):
        make_run(npz, 0.5, claim=claim)
    client = mlflow.MlflowClient()
    client.delete_run(make_run(npz, 1.0).run_id)
    run = make_run(npz, 0.3)
    client.log_metric(run.run_id, "best_val_auc", 0.9, step=2)  # the last value counts
    gone = make_run(npz, 1.0, experiment="gone")
    client.delete_experiment(client.get_run(gone.run_id).info.experiment_id)
    by_database = find_candidates()
    count = count_runs()
    monkeypatch.setattr(queries, "is_database", lambda _uri: False)
    assert sorted(by_database, key=lambda c: c.run_id) == sorted(find_candidates(), key=lambda c: c.run_id)
    assert count_runs() == count == 12
    assert {(c.group[1], c.val_auc) for c in by_database} >= {("A", 0.9)}
    assert len(by_database) == 4
    assert [c.allowed_leaks for c in by_database if c.is_leaky] == ["2"]
    assert len(find_candidates("other")) == 1


@pytest.mark.usefixtures("any_store")
def test_looking_makes_nothing(folder: Path) -> None:
    open_store()
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    assert main(["--check"]) == 0
    assert main([]) == 2
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before


@pytest.mark.usefixtures("any_store")
@pytest.mark.parametrize(
    "any_store", ["sqlite", "file", pytest.param("server", marks=pytest.mark.exhaustive)], indirect=True
)
def test_eight_at_once(folder: Path, npz: Path) -> None:
    runs = {}
    for modality in ("A", "P"):
        make_run(npz, 0.5, modality=modality)
        runs[modality] = make_run(npz, 1.0, modality=modality)
    processes = [Forked("promote", folder, []) for _ in range(8)]
    for process in processes:
        assert process.wait(200) == 0, process.log.read_text()
    for modality, run in runs.items():
        name = f"resnet18_{modality}"
        assert champion_run(name) == run.run_id
        assert version_count(name) == 1
        assert aliases(name) == {"champion": 1}
    assert sorted((entry.modality, entry.action) for entry in history()) == [
        ("A", "promotion"),
        ("P", "promotion"),
    ]
    assert main(["--check"]) == 0
