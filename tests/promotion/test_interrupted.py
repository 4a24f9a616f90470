"""Killed at every write in turn, then run again."""

import shutil
from pathlib import Path

import pytest
import yaml

from src.promote import main
from tests.promotion.conftest import aliases, champion_run, history, version_count
from tests.promotion.deadly import start
from tests.promotion.runs import Made, make_run

pytestmark = pytest.mark.slow

RECORD = Path("config/best_hparams/resnet18_A.yaml")
QUICK = {("mlflow.db", "second"), ("mlflow.db", "rollback"), ("mlruns", "forced")}
TOLD = {"first": 1, "second": 2, "rollback": 3, "forced": 4}
BACK = ["--rollback", "--model", "resnet18", "--modality", "A"]


def is_killed(folder: Path, write: int, options: list[str]) -> bool:
    """Whether the command has that many writes, and so was killed after one."""
    process = start(folder, [*options, "--no-verify"], kill_after=write)
    status = process.wait(120)
    assert process.is_killed or status == 0, process.log.read_text()
    return process.is_killed


def assert_consistent(run: Made, version: int, versions: int, told: int) -> None:
    assert main(["--check"]) == 0
    assert champion_run() == run.run_id
    assert aliases()["champion"] == version
    assert version_count() == versions
    assert yaml.safe_load(RECORD.read_text())["mlflow"]["run_id"] == run.run_id
    lines = [entry.to_json() for entry in history()]
    assert len(lines) == len(set(lines)) == told


def prepared(npz: Path, command: str) -> tuple[list[str], Made, int]:
    """Runs and what is there before; returns the options, the champion to be, and its version."""
    first = make_run(npz, 0.5, start_time=1_000)
    if command == "first":
        return [], first, 1
    assert main([]) == 0
    second = make_run(npz, 1.0, start_time=2_000)
    if command == "second":
        return [], second, 2
    assert main([]) == 0
    if command == "rollback":
        return BACK, first, 1
    assert main(BACK) == 0
    return ["--force"], second, 2


CASES = [
    pytest.param(store, command, marks=[] if (store, command) in QUICK else [pytest.mark.exhaustive])
    for store in ("mlflow.db", "mlruns")
    for command in TOLD
]


@pytest.mark.parametrize(("store", "command"), CASES)
def test_killed_at_every_write(
    folder: Path,
    npz: Path,
    store: str,
    command: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if store == "mlruns":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(folder / "mlruns"))
    else:
        request.getfixturevalue("sqlite")
    options, champion, version = prepared(npz, command)
    for write in range(1, 100):
        # A copy of registry and records; the runs' artifacts stay where they are.
        copy = folder / f"killed-{write}"
        copy.mkdir()
        for name in (store, "config"):
            if (folder / name).is_dir():
                shutil.copytree(folder / name, copy / name)
            elif (folder / name).exists():
                shutil.copy(folder / name, copy / name)
        monkeypatch.chdir(copy)
        if store == "mlruns":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", str(copy / "mlruns"))
        killed = is_killed(copy, write, options)
        assert main(["--no-verify"]) == 0
        if champion_run() != champion.run_id:
            # Killed before it had begun: whoever asked for it asks again.
            assert options
            assert main(["--check"]) == 0
            assert main(options) == 0
        assert_consistent(champion, version, 1 if command == "first" else 2, TOLD[command])
        if not killed:
            break
    assert write > 5
