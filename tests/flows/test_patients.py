"""Who a patient is, and where an image lies, stays on the user's own disk and terminal."""

import csv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from src.train import main
from tests.conftest import ROOT
from tests.flows.processes import STORES, TINY
from tests.images import write_folder

pytestmark = pytest.mark.slow

CANARY = "CANARY-19520304"


def write_patients(root: Path) -> Path:
    """A manifest whose paths, patients and image ids all say who it is."""
    write_folder(root, counts={"train": 16, "val": 16, "test": 16})
    with (root / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "modality", "split", "patient_id", "image_id"])
        for number, path in enumerate(sorted(root.rglob("*.png"))):
            modality, split, label, _ = path.relative_to(root).parts
            named = path.rename(path.with_name(f"{CANARY}_{number}.png"))
            who = f"{CANARY}-{number}"
            table.writerow([named.relative_to(root), label, modality, split, who, who])
    return root


def kept(folder: Path, root: Path) -> Iterator[tuple[Path, bytes]]:
    """All that a training leaves, and all that is packed within it.

    The cache of decoded images is as private as the images: it must know which file is which.
    """
    private = {root, folder / "outputs/cache"}
    for path in folder.rglob("*"):
        if path.is_file() and not private & set(path.parents):
            yield path, path.read_bytes() + str(path).encode()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((path / name, archive.read(name)) for name in archive.namelist())


def assert_unsaid(folder: Path, root: Path, *said: str) -> None:
    words = [CANARY.encode(), str(root).encode()]
    for path, content in kept(folder, root):
        assert not [word for word in words if word in content], path
    for text in said:
        assert not [word for word in words if word.decode() in text], text


@pytest.mark.parametrize("store", STORES)
def test_a_training_that_goes_well(
    store: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if STORES[store]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", STORES[store])
    root = write_patients(folder / "study-of-somebody")
    # A link, so that the absolute path of the images is no part of what the user says.
    Path("data").symlink_to(root)
    assert main([*TINY, "--data", "data", "--modality", "A", "--promote"]) == 0
    assert_unsaid(folder, root, *capfd.readouterr())
    (table,) = folder.glob("outputs/*/predictions/test.csv")
    assert table.read_text().startswith("sample,patient,label,")


def test_a_training_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_patients(folder / "study-of-somebody")
    next(root.rglob("*_3.png")).write_text("no image")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    tags = {
        "mlflow.source.type": "PROJECT",
        "mlflow.project.entryPoint": "main",
        "mlflow.source.name": str(ROOT),
    }
    run_id = client.create_run("0", tags=tags).info.run_id  # as `mlflow run` makes one
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert main([*TINY, "--data", str(root), "--modality", "A"]) == 2
    assert f"{CANARY}_3.png: not an image" in capfd.readouterr().err  # which file, the user must know
    assert "cannot be read" in client.get_run(run_id).data.tags["error"]
    assert_unsaid(folder, root)
