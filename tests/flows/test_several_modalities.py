"""The real commands on DICOM files of two phases, stacked as channels."""

from pathlib import Path

import mlflow
import numpy as np
import pydicom
import pytest
import torch
import yaml
from pydicom.data import get_testdata_file

from src.evaluation.predictions import read_predictions
from src.train import main
from tests.conftest import FROM_SCRATCH
from tests.promotion.conftest import champion_run

pytestmark = pytest.mark.slow

WINDOW = [-150.0, 250.0]


def write_dicom(root: Path, patients: int = 32) -> Path:
    """A slice of each patient in two phases; the classes differ by 60 HU in one of them."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    for patient in range(patients):
        random = np.random.default_rng(patient)
        for phase in "AP":
            level = 1060 + 60 * (patient % 2) * (phase == "A")
            pixels = random.normal(level, 40, (32, 32)).astype(np.int16)
            dataset.Rows = dataset.Columns = 32
            dataset.PatientID, dataset.PixelData = f"CANARY{patient:03d}", pixels.tobytes()
            path = root / phase / ("neg", "pos")[patient % 2] / f"{phase}_{patient:03d}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.save_as(path)
    return root


def test_from_dicom_of_two_phases_to_a_champion(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dicom(folder / "d")
    options = ["--model", "shufflenet_v2_x0_5", "--modality", "A+P", "--data", "d", "--epochs", "1"]
    options += ["--set", "training.batch_size=8", *FROM_SCRATCH, "--promote"]
    assert main([*options, "--set", f"data.window={WINDOW}"]) == 0
    assert "warning" not in capsys.readouterr().err
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.data.tags["modality"] == "A+P"
    assert run.data.params["data.window"] == str(WINDOW)
    assert run.data.params["data.channels"] == "1"
    assert champion_run("shufflenet_v2_x0_5_A+P") == run.info.run_id
    record = yaml.safe_load(Path("config/best_hparams/shufflenet_v2_x0_5_A+P.yaml").read_text())
    assert (record["data"]["modalities"], record["data"]["window"]) == (["A", "P"], WINDOW)
    # The model takes what the window makes of the files, and says which window that is.
    source = "models:/shufflenet_v2_x0_5_A+P@champion"
    assert (mlflow.models.get_model_info(source).metadata or {})["window"] == WINDOW
    checkpoint = torch.load(next(folder.glob("outputs/*/checkpoints/best_model.pth")))
    assert list(checkpoint["input"]["window"]) == WINDOW
    stored = read_predictions(next(folder.glob("outputs/*/predictions/val.csv")))
    given = mlflow.pytorch.load_model(source)(pixels_of(folder / "d")).detach().numpy()
    for probabilities in stored.probabilities:
        assert np.abs(given - probabilities).sum(axis=1).min() < 1e-4
    assert_no_identifier(folder)


def pixels_of(root: Path) -> torch.Tensor:
    """What the README says that a window does, done by hand: uint8 (N, 2, 32, 32)."""
    phases = []
    for phase in "AP":
        files = sorted((root / phase).rglob("*.dcm"), key=lambda path: path.name)
        units = np.stack([pydicom.dcmread(file).pixel_array for file in files]) - 1024.0
        phases.append(np.rint((units - WINDOW[0]) * 255 / (WINDOW[1] - WINDOW[0])).clip(0, 255))
    return torch.from_numpy(np.stack(phases, axis=1).astype(np.uint8))


def assert_no_identifier(folder: Path) -> None:
    kept = [p for p in folder.rglob("*") if p.is_file() and folder / "d" not in p.parents]
    assert len(kept) > 20
    for path in kept:
        assert b"CANARY" not in path.read_bytes(), path
