"""A store that an earlier version of this project wrote, of data that no fix since has changed."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import Run as MlflowRun
from PIL import Image

from src import predict, promote, train
from src.evaluation.predictions import read_predictions
from src.training.recorder import TIMING_METRICS
from tests.conftest import ROOT, clean_environment
from tests.data.test_dicom import ct_folder
from tests.flows.processes import client_of
from tests.images import make_images, write_npz

MODEL = "shufflenet_v2_x0_5"
COMMON = ["--model", MODEL, "--epochs", "4", "--set", "training.batch_size=8", "--set", "model.weights=none"]
DEEP = ["--set", "data.image_size=16", "--set"]
DATA = {
    "A": ("d.npz", []),
    "P": ("manifest", [*DEEP, "data.window=[0,4095]"]),
    "V": ("dicom", [*DEEP, "data.window=[-160,240]"]),
}
# The defaults of a time, which ``--resume auto`` needs to find a run of it.
THEN = ["data.fit=legacy", "data.stratify=patients", "data.augment.horizontal_flip=true"]
THEN += ["training.learning_rate=0.001", "training.backbone_learning_rate=null"]
# Add the commit before a change to what is stored or to how images are read, with its defaults.
COMMITS: dict[str, list[str]] = {
    "513fa2014c917f71371dca2372b77fb755f12d81": THEN,
    "8745eb4b47867b505a98522896453a51762f1876": THEN,
    "0f698f6a72e240813ab069647c346527bd478550": [],
}
pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(1200)]


def arguments(modality: str) -> list[str]:
    """Of ``src.train``."""
    data, options = DATA[modality]
    return [*COMMON, "--modality", modality, "--data", data, *options]


def write_manifest(root: Path) -> None:
    """Gray PNG files of 12 in 16 bits, two of each patient."""
    root.mkdir()
    lines = ["path,label,modality,patient_id,split"]
    for split, count in {"train": 32, "val": 16, "test": 16}.items():
        images, labels = make_images(count, 16, count + len(split))
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{split}_{number:02d}.png"
            Image.fromarray(image.astype(np.uint16) * 16 + number).save(root / name)
            lines.append(f"{name},{('benign', 'malignant')[label]},P,{split[:2]}{number // 2:02d},{split}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module", params=COMMITS)
def commit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def store(commit: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the code of a commit has trained, promoted and predicted."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"no commit {commit} here, as in a shallow clone: {archive.stderr.decode()}")
    code, folder = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("store")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(code, filter="data")
    write_npz(folder / "d.npz")
    write_manifest(folder / "manifest")
    (ct_folder(folder / "dicom") / "A").rename(folder / "dicom/V")
    plan = {
        modality: {"model": MODEL, "train": arguments(modality), "data": data}
        for modality, (data, _) in DATA.items()
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, ROOT / "tests/flows/earlier_store.py"],
        cwd=folder,
        env=clean_environment(folder / "torch") | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def earlier(store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test works in there."""
    assert folder.exists()  # the environment is clean
    monkeypatch.chdir(store)
    return store


def runs(folder: Path, modality: str) -> list[MlflowRun]:
    """Those of one modality, oldest first."""
    found = client_of(folder).search_runs(["0"], f"tags.modality = '{modality}'", order_by=["start_time ASC"])
    return list(found)


def points(folder: Path, run: MlflowRun) -> dict[str, list[tuple[int, float]]]:
    """Every value of every metric that does not measure the machine."""
    client = client_of(folder)
    return {
        name: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
        if not name.startswith("system/") and name not in TIMING_METRICS
    }


def weights(folder: Path, run: MlflowRun, file: str) -> dict[str, torch.Tensor]:
    path = folder / "outputs" / run.data.params["experiment.name"] / "checkpoints" / file
    found: dict[str, torch.Tensor] = torch.load(path)["model_state_dict"]
    return found


def assert_same(folder: Path, first: MlflowRun, second: MlflowRun) -> None:
    """Both runs hold the same training, to the last bit."""
    assert first.info.status == second.info.status == "FINISHED"
    assert points(folder, second) == points(folder, first)
    for file in ("latest.pth", "best_model.pth"):
        one, two = (weights(folder, run, file) for run in (first, second))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), file
    names = [run.data.params["experiment.name"] for run in (first, second)]
    histories = [folder / "outputs/logs" / name / "training_history.csv" for name in names]
    assert histories[0].read_bytes() == histories[1].read_bytes()
    for split in ("val", "test"):
        tables = [read_predictions(folder / f"outputs/{name}/predictions/{split}.csv") for name in names]
        assert tables[0].samples == tables[1].samples
        assert np.array_equal(tables[0].labels, tables[1].labels)
        assert np.array_equal(tables[0].probabilities, tables[1].probabilities)


def test_champions_agree(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote.main(["--check"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{MODEL}_{modality}" in shown for modality in DATA)
    assert len(list((earlier / "config/best_hparams").glob("*.yaml"))) == len(DATA)


@pytest.mark.parametrize("modality", DATA)
def test_the_same_is_predicted(earlier: Path, modality: str) -> None:
    before = pd.read_csv(earlier / f"{modality}.csv")
    model = ["--model", MODEL, "--modality", modality]
    assert predict.main([*model, "--input", DATA[modality][0], "--output", "now.csv"]) == 0
    now = pd.read_csv("now.csv")
    numbers = [name for name in before.columns if name.startswith("p_")]
    others = [name for name in before.columns if name not in numbers]
    assert len(numbers) == 2
    pd.testing.assert_frame_equal(now[others], before[others])
    assert np.abs(now[numbers].to_numpy() - before[numbers].to_numpy()).max() <= 1e-5


@pytest.mark.parametrize("modality", DATA)
def test_an_interrupted_run_ends_as_it_would_have(earlier: Path, commit: str, modality: str) -> None:
    finished, interrupted = runs(earlier, modality)[:2]
    assert interrupted.info.status == "KILLED"
    name = interrupted.data.params["experiment.name"]
    assert torch.load(earlier / f"outputs/{name}/checkpoints/latest.pth")["epoch"] < 4
    resume = ["--resume", interrupted.info.run_id]
    if modality != "A":
        then = [word for setting in COMMITS[commit] for word in ("--set", setting)]
        resume = [*arguments(modality), *then, "--resume", "auto"]
    assert train.main(resume) == 0
    assert_same(earlier, finished, mlflow.get_run(interrupted.info.run_id))


@pytest.mark.parametrize("modality", DATA)
def test_its_yaml_trains_to_the_same_model(earlier: Path, modality: str) -> None:
    finished = runs(earlier, modality)[0]
    assert train.main(["--config", f"config/best_hparams/{MODEL}_{modality}.yaml"]) == 0
    again = runs(earlier, modality)[-1]
    assert again.info.run_id != finished.info.run_id
    assert again.data.metrics["best_val_auc"] == finished.data.metrics["best_val_auc"]
    assert_same(earlier, finished, again)
