"""Many trainings at once on one new store: each is whole, and what they promote is the best of them."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run as MlflowRun

from src import promote
from src import store as care
from src.promotion.history import read_history
from src.training.recorder import COLUMNS
from tests.conftest import Process
from tests.flows.processes import STORES, TINY, runs, start
from tests.images import write_npz

pytestmark = pytest.mark.slow

# More than this machine has cores, and so many that they meet at every lock.
COUNT = int(os.environ.get("MLPROJECT_TEST_TOGETHER", "8"))
EPOCHS = 6
GROUPS = [
    ("shufflenet_v2_x0_5", "A"),
    ("shufflenet_v2_x0_5", "A"),
    ("shufflenet_v2_x0_5", "P"),
    ("mnasnet0_5", "A"),
]
EVERY_EPOCH = [*COLUMNS[1:], "learning_rate", "epoch_seconds", "images_per_second"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of store; there is none yet."""
    assert list(folder.iterdir()) == []
    chosen = STORES[request.param]
    if chosen:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", chosen)
    return chosen


@pytest.fixture
def outputs(folder: Path, store: str) -> Iterator[list[tuple[int, str, str]]]:
    """Exit status, stdout and stderr of trainings that were all started at the same moment."""
    write_npz(folder / "small.npz")
    env: dict[str, Any] = {"MLFLOW_TRACKING_URI": store} if store else {}
    started = [start(folder, *options(number), **env) for number in range(COUNT)]
    try:
        yield [finish(process) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def options(number: int) -> list[str]:
    model, modality = GROUPS[number % len(GROUPS)]
    chosen = ["--model", model, "--modality", modality, "--epochs", str(EPOCHS), "--promote"]
    # Another seed each: within a group the runs differ, and one of them is the best.
    return ["-m", "src.train", *TINY, *chosen, "--set", f"training.seed={number}"]


def finish(process: Process) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=60 * COUNT)
    return process.wait(), out, errors


@pytest.mark.exhaustive
@pytest.mark.timeout(120 * COUNT)
def test_all_are_whole_and_the_best_is_promoted(
    folder: Path, store: str, outputs: list[tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for status, _, errors in outputs:
        assert status == 0, errors
        for word in ("locked", "Traceback", "IntegrityError", "OperationalError", "retry", "Retry"):
            assert word not in errors
    found = runs(folder, store)
    assert len(found) == COUNT
    for run in found:
        check_whole(run, folder)
    for group in GROUPS[:COUNT]:
        members = [run for run in found if (run.data.tags["model"], run.data.tags["modality"]) == group]
        check_promoted(members, "_".join(group))
    assert promote.main(["--check"]) == 0, capsys.readouterr()
    assert care.main(["doctor"]) == 0, capsys.readouterr()
    assert not list(folder.rglob(".tmp-*"))


def check_whole(run: MlflowRun, folder: Path) -> None:
    """Every metric once at every step, as the table of epochs has it, and every file that is on disk."""
    client, name = mlflow.MlflowClient(), run.data.params["experiment.name"]
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    with (folder / "outputs/logs" / name / "training_history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for metric in EVERY_EPOCH:
        points = sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, metric))
        assert [step for step, _ in points] == list(range(1, EPOCHS + 1)), metric
        if metric in rows[0]:
            assert [value for _, value in points] == [float(row[metric]) for row in rows]
    there = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
    made = files(folder / "outputs/logs" / name) | files(folder / "outputs" / name)
    assert files(there) == made
    assert {"config.yaml", "checkpoints/best_model.pth", "predictions/test.csv", "plots/roc.png"} <= set(made)
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "READY"


def files(root: Path) -> dict[str, bytes]:
    """Content by path; locks are nobody's result."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def check_promoted(members: list[MlflowRun], name: str) -> None:
    """One version for each promotion, in the order of their numbers, each better than the one before."""
    client = mlflow.MlflowClient()
    auc = {run.info.run_id: run.data.metrics["best_val_auc"] for run in members}
    versions = {int(v.version): v.run_id for v in client.search_model_versions(f"name='{name}'")}
    told = [entry for entry in read_history() if f"{entry.model}_{entry.modality}" == name]
    assert [entry.action for entry in told] == ["promotion"] * len(told)
    assert [(entry.version, entry.run_id) for entry in told] == sorted(versions.items())
    assert sorted(versions) == list(range(1, len(told) + 1)) != []
    assert max(Counter(versions.values()).values()) == 1
    scores = [auc[entry.run_id or ""] for entry in told]
    assert scores == sorted(set(scores))
    champion = client.get_model_version_by_alias(name, "champion")
    assert int(champion.version) == len(versions)
    assert auc[champion.run_id or ""] == max(auc.values())
