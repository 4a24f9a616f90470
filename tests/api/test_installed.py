"""The installed package, in a folder without a checkout: a typed script, the commands, and the notebook."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment
from tests.flows.processes import TINY
from tests.images import write_folder, write_npz

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = """
from pathlib import Path

from mlproject.api import Config, MlprojectError, Run, load, promote, train

base = Config.from_dict({"model": {"name": "shufflenet_v2_x0_5", "weights": "none"}})
run: Run = train(base, data="images", epochs=1, settings={"training.batch_size": 64})
best: float = run.metrics["best_val_auc"]
(promotion,) = promote(min_auc=0.0)
model = load(promotion.uri)
paths: list[Path] = sorted(Path("images").rglob("*.png"))[:3]
table = model.predict(paths)
assert list(table["image"]) == [str(path) for path in paths]
try:
    train({"training": {"epoch": 3}})
except MlprojectError as error:
    print(error)
"""


def pip(*words: str) -> None:
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", *words, *options], check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; all other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "config"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "base.pth").write_text("\n".join(here))
    pip("wheel", "--no-build-isolation", "-w", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    pip("--python", str(python), "install", "--ignore-installed", str(wheel))
    return python


def environment(python: Path, folder: Path) -> dict[str, str]:
    values = clean_environment(folder / "torch") | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    }
    del values["PYTHONPATH"]
    return values


def start(python: Path, folder: Path, *words: str | Path) -> subprocess.Popen[str]:
    program = [python.parent / words[0]] if (python.parent / words[0]).exists() else [python, words[0]]
    return subprocess.Popen(
        [*program, *words[1:]],
        cwd=folder,
        env=environment(python, folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, (out, err)
    return out


def run(python: Path, folder: Path, *words: str | Path) -> str:
    return finish(start(python, folder, *words))


def test_a_typed_script(installed: Path, folder: Path) -> None:
    write_folder(folder / "images", counts={"train": 300, "val": 16}, size=16)
    (folder / "script.py").write_text(SCRIPT)
    checked = start(installed, folder, "-m", "mypy", "--strict", "script.py")
    try:
        # More images than are decoded in one process, and no `if __name__ == "__main__"` in the script.
        assert run(installed, folder, "script.py").startswith("settings: training.epoch: unknown key")
        assert "no issues found" in finish(checked)
    finally:
        checked.kill()


def test_the_commands(installed: Path, folder: Path) -> None:
    write_npz(folder / "small.npz")
    assert "best val AUC" in run(installed, folder, "mlproject", "train", *TINY)
    named = ["--model", "shufflenet_v2_x0_5", "--modality", "A"]
    assert "promoted" in run(installed, folder, "mlproject", "promote", *named)
    assert "64 images" in run(installed, folder, "mlproject", "predict", *named, "--input", "small.npz")
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert "2 processes" in run(installed, folder, *ranks, "-m", "mlproject.train", *TINY)
    swept = run(installed, folder, "mlproject", "sweep", "--trials", "2", *TINY)
    assert ": 2 trials, 1 worker, run " in swept
    resumed = run(installed, folder, "mlproject", "verify", "resume", "--kills", "1", *TINY, "--epochs", "3")
    assert "identical after 1 times kill -9" in resumed


EXECUTE = """
import nbclient, nbformat
notebook = nbformat.read("example.ipynb", 4)
nbclient.execute(notebook, kernel_name="python3")
nbformat.write(notebook, "done.ipynb")
"""


def test_the_notebook(installed: Path, folder: Path) -> None:
    shutil.copy(ROOT / "docs/example.ipynb", folder)
    run(installed, folder, "-c", EXECUTE)
    cells = json.loads((folder / "done.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert len([output for output in outputs if output.get("name") == "stdout"]) == 1  # of `print`
    text = json.dumps(outputs)
    assert "promoted 1 version 1; the first of its group; verified" in text
    assert re.search(r"Classifier shufflenet_v2_x0_5_A version 1: benign, malignant", text)
