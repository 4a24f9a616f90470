"""From training to a champion and back to training, by the real commands."""

import shutil
from pathlib import Path

import mlflow
import pytest
import yaml

from src import promote, train
from src.tracking.pt2_check import checked_copy
from src.utils.config import Config
from tests.conftest import FROM_SCRATCH, ROOT, Run
from tests.images import write_npz

pytestmark = pytest.mark.slow

TINY = ["--data", "small.npz", "--model", "shufflenet_v2_x0_5", "--epochs", "2"]
TINY += ["--set", "training.batch_size=8", *FROM_SCRATCH]
RECORD = Path("config/best_hparams/shufflenet_v2_x0_5_A.yaml")


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.mark.usefixtures("sqlite")
def test_the_record_trains_to_the_same_auc_in_a_run_of_its_own(
    folder: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert npz.exists()
    assert train.main([*TINY, "--promote"]) == 0
    assert "version 1; the first of its group; verified by logged model" in capsys.readouterr().out
    recorded = yaml.safe_load(RECORD.read_text())
    assert Config.from_file(RECORD).experiment.name is None
    assert train.main(["--config", str(RECORD), "--promote"]) == 0
    client = mlflow.MlflowClient(uri(folder))
    runs = client.search_runs(["0"], order_by=["attributes.start_time ASC"])
    assert len({run.data.params["experiment.name"] for run in runs}) == 2
    assert {run.data.metrics["best_val_auc"] for run in runs} == {recorded["best_metrics"]["val_auc"]}
    assert {run.data.tags["config.sha256"] for run in runs} == {runs[0].data.tags["config.sha256"]}
    # A tie goes to the earlier run: training again has changed nothing.
    assert recorded == yaml.safe_load(RECORD.read_text())
    assert recorded["mlflow"]["run_id"] == runs[0].info.run_id
    assert promote.main(["--check"]) == 0


@pytest.mark.usefixtures("sqlite")
def test_a_training_whose_promotion_fails_is_finished_and_says_so(
    folder: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert npz.exists()
    RECORD.parent.mkdir(parents=True)
    RECORD.write_text("data: [")
    assert train.main([*TINY, "--promote"]) == 1
    captured = capsys.readouterr()
    assert "not valid YAML" in captured.out
    assert "see the lines above: shufflenet_v2_x0_5_A" in captured.err
    (run,) = mlflow.MlflowClient(uri(folder)).search_runs(["0"])
    assert run.info.status == "FINISHED"


@pytest.mark.exhaustive
def test_a_vision_transformer_goes_the_whole_way(
    folder: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert npz.exists()
    options = ["--model", "vit_b_16", "--data", "small.npz", "--epochs", "1"]
    sets = ["data.image_size=32", "training.batch_size=16", "model.weights=none"]
    assert train.main([*options, *(item for value in sets for item in ("--set", value))]) == 0
    (archive,) = (folder / "mlruns").rglob("model.pt2")
    with checked_copy(archive):  # nothing of ours is refused
        pass
    assert promote.main(["--model", "vit_b_16"]) == 0
    assert (
        "vit_b_16_A: version 1; the first of its group; verified by logged model" in capsys.readouterr().out
    )
    client = mlflow.MlflowClient(uri(folder))
    (run,) = client.search_runs(["0"])
    assert run.data.params["data.image_size"] == "32"
    assert client.get_model_version_by_alias("vit_b_16_A", "champion").run_id == run.info.run_id


def test_by_mlflow_run(folder: Path, run_python: Run) -> None:
    """``-P promote=true`` and ``-e promote``, in a copy of the project: records go into its folder."""
    for name in ("src", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("MLproject", "python_env.yaml"):
        shutil.copy(ROOT / name, folder / name)
    write_npz(folder / "small.npz")
    sets = "training.batch_size=8,model.weights=none"
    options = {"model": "shufflenet_v2_x0_5", "data": "small.npz", "epochs": "1", "overrides": sets}
    given = [item for key, value in options.items() for item in ("-P", f"{key}={value}")]
    project = ("-m", "mlflow", "run", ".", "--env-manager", "local")
    RECORD.parent.mkdir(parents=True)
    RECORD.write_text("data: [")
    done = run_python(*project, *given, "-P", "promote=true", PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    why = "needs attention, see the lines above: shufflenet_v2_x0_5_A"
    assert f"the training run finished, but promotion failed: {why}" in done.stderr
    RECORD.unlink()
    done = run_python(*project, "-e", "promote", "-P", "significant=True", PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(uri(folder))
    by_role = {run.data.tags.get("role", "training"): run for run in client.search_runs(["0"])}
    assert {role: run.info.status for role, run in by_role.items()} == {
        "training": "FINISHED",
        "promote": "FINISHED",
    }
    assert "model" not in by_role["promote"].data.tags
    trained = by_role["training"].data
    assert (trained.params["model"], trained.params["training.epochs"]) == ("shufflenet_v2_x0_5", "1")
    assert (trained.tags["modality"], trained.tags["mlflow.source.type"]) == ("A", "PROJECT")
    champion = client.get_model_version_by_alias("shufflenet_v2_x0_5_A", "champion")
    assert champion.run_id == by_role["training"].info.run_id
    assert yaml.safe_load(RECORD.read_text())["mlflow"]["version"] == 1
