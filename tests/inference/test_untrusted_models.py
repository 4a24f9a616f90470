"""A logged model that somebody has tampered with, met by each command that loads one."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from src import evaluate, export, extract, predict
from tests import hostile
from tests.hostile import CANARY
from tests.inference.conftest import NAMED, champion

pytestmark = pytest.mark.slow

COMMANDS: dict[str, Callable[[], int]] = {
    "predict": lambda: predict.main([*NAMED, "--input", "d/A/test", "--output", "p.csv"]),
    "evaluate": lambda: evaluate.main([*NAMED]),
    "extract": lambda: extract.main([*NAMED, "--input", "d/A/test", "--output", "f.parquet"]),
    "export": lambda: export.main([*NAMED, "--output", "m.onnx"]),
}


@pytest.fixture
def model(trained: Path) -> Iterator[Path]:
    """The folder of the champion's logged model, mended afterwards."""
    source = str(champion().source).removeprefix("models:/")
    (folder,) = (trained / "mlruns").rglob(f"{source}/artifacts")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield folder
    for path in list(folder.rglob("*")):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
    CANARY.unlink(missing_ok=True)


def refused(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert COMMANDS[command]() == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    assert not CANARY.exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("kind", "said"), [*hostile.CONTENTS, *hostile.LAYOUTS])
def test_a_hostile_archive(
    model: Path, capsys: pytest.CaptureFixture[str], command: str, kind: Callable[..., Any], said: str
) -> None:
    archive = model / "data/model.pt2"
    archive.write_bytes(hostile.make(archive, kind))
    refused(command, said, capsys)


MLMODEL = [
    ("pytorch", "code", "code"),
    ("pytorch", "model_data", "../other"),
    ("pytorch", "extra_files", [{"path": "extra_files/evil.py"}]),
    ("pytorch", "requirements_file", {"path": "requirements.txt"}),
    ("python_function", "code", "code"),
    ("python_function", "loader_module", "evil"),
    ("python_function", "data", "code"),
    ("python_function", "model_code_path", "evil.py"),
]


@pytest.mark.parametrize(("flavor", "key", "value"), MLMODEL)
def test_a_description_that_names_something_else(
    model: Path, capsys: pytest.CaptureFixture[str], flavor: str, key: str, value: object
) -> None:
    """MLflow's own loader puts ``code`` on the path and imports ``loader_module``."""
    for folder in (model, model / "code"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text(f"open({str(CANARY)!r}, 'w')")
    description = yaml.safe_load((model / "MLmodel").read_text())
    description["flavors"][flavor][key] = value
    (model / "MLmodel").write_text(yaml.safe_dump(description))
    refused("predict", f"{flavor}.{key} is ", capsys)


def test_another_archive_beside_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "other").mkdir()
    os.link(model / "data/model.pt2", model / "other/model.pt2")
    description = yaml.safe_load((model / "MLmodel").read_text())
    description["flavors"]["pytorch"]["model_data"] = "other"
    (model / "MLmodel").write_text(yaml.safe_dump(description))
    refused("predict", "pytorch.model_data is 'other'", capsys)


@pytest.mark.parametrize("text", ["flavors: []", "flavors: {pytorch: [1], python_function: 3}"])
def test_a_description_of_another_shape(model: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (model / "MLmodel").write_text(text)
    refused("predict", "pytorch.model_data is 'None'", capsys)
