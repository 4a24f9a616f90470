"""What a run takes on disk: nothing twice, and no more for more epochs."""

import hashlib
from collections import defaultdict
from pathlib import Path

import pytest

from src import train
from tests.conftest import FROM_SCRATCH
from tests.stores import place_store

pytestmark = pytest.mark.slow

TRAIN = ["--data", "small.npz", "--model", "shufflenet_v2_x0_5", "--set", "training.batch_size=16"]
TRAIN += FROM_SCRATCH
LARGE = 10_000  # bytes; what is smaller is text, or MLflow's own book-keeping


def large_files(folder: Path) -> dict[tuple[int, int], Path]:
    """One path for each large file, whatever number of names it has."""
    files = (path for path in folder.rglob("*") if path.is_file() and "mlflow.db" not in path.name)
    states = ((path.stat(), path) for path in files)
    return {(state.st_dev, state.st_ino): path for state, path in states if state.st_size > LARGE}


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("file", marks=pytest.mark.exhaustive)])
def test_thirty_epochs_take_no_more_than_three(
    folder: Path, npz: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert npz.exists()
    rest = []
    for epochs in (3, 30):
        place = folder / str(epochs)
        place.mkdir()
        (place / "small.npz").symlink_to(npz)
        monkeypatch.chdir(place)
        if kind == "sqlite":
            place_store(place / "mlflow.db")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", str(place / "mlruns"))
        assert train.main([*TRAIN, "--epochs", str(epochs)]) == 0
        found = large_files(place)
        by_content = defaultdict(list)
        for path in found.values():
            by_content[hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
        assert [paths for paths in by_content.values() if len(paths) > 1] == []
        checkpoints = [path for path in found.values() if path.suffix == ".pth"]
        assert len(checkpoints) <= 3  # the latest, the one before, the best
        rest.append(sum(path.stat().st_size for path in found.values() if path.suffix != ".pth"))
    assert rest[1] <= rest[0] * 1.05  # a plot's compression
