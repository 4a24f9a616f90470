"""Rules of the project that no tool checks."""

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from src import __main__ as main
from src.evaluation import metric_names
from src.tracking import names as store_names
from src.utils.config import Config
from tests.conftest import ROOT, Run

SOURCES = sorted((ROOT / "src").rglob("*.py"))
LAYERS: dict[str, float] = {
    "errors": 0,
    "utils": 1,
    "demo": 1.5,
    "evaluation": 2,
    "data": 2,
    "models": 2,
    "training": 3,
    "tracking": 3,
    "promotion": 4,
    "experiment": 4,
    "inference": 4,
    "retention": 4,
    "verification": 5,
    "search": 5,
    "reporting": 5,
}
COMMAND = 6
# Promotion and reports judge runs by what they have stored. The name that is left resolves `auto` settings.
NEED_NO_TRAINING = {
    "promotion": set[str](),
    "reporting": {"src.training.optim", "src.training.optim.resolve_defaults"},
}


def layer(parts: tuple[str, ...]) -> float:
    return LAYERS.get(parts[1].removesuffix(".py"), COMMAND)


def imports(text: str, package: str) -> list[str]:
    """Full names of what a module of the package imports, modules and members."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return found


def is_forbidden(name: str, here: tuple[str, ...]) -> bool:
    parts = tuple(name.split("."))
    if parts[0] == "mlflow":
        return here[1] != "tracking"
    if parts[0] == "torchvision":
        return here[-1] != "torchvision_import.py"
    if parts[0] != "src" or len(parts) == 1 or parts[1] == here[1]:
        return False
    is_module = any((ROOT / "src" / parts[1]).with_suffix(suffix).exists() for suffix in ("", ".py"))
    return is_module and layer(parts) >= layer(here)


def violations(text: str, path: Path) -> list[str]:
    """What is wrong with the imports of a file, its path relative to the project."""
    names = imports(text, ".".join(path.parts[:-1]))
    absolute = re.findall(r"^\s*(?:from|import) (src\b\S*)", text, flags=re.MULTILINE)
    return [name for name in names if is_forbidden(name, path.parts)] + absolute


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_layer_imports_only_layers_below_by_relative_names(path: Path) -> None:
    assert violations(path.read_text(), path.relative_to(ROOT)) == []


@pytest.mark.parametrize("package", NEED_NO_TRAINING)
def test_what_reads_finished_runs_needs_no_training(package: str) -> None:
    for path in sorted((ROOT / "src" / package).glob("*.py")):
        names = imports(path.read_text(), f"src.{package}")
        needed = {name for name in names if f"{name}.".startswith("src.training.")}
        assert needed <= NEED_NO_TRAINING[package], path


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("from ..training import trainer", ["src.training", "src.training.trainer"]),
        ("from ..training.trainer import fit", ["src.training.trainer", "src.training.trainer.fit"]),
        ("    from .. import train", ["src.train"]),
        ("from src.utils.io import file_lock", ["src.utils.io"]),
        ("import src.errors", ["src.errors"]),
        ("from mlflow import MlflowClient", ["mlflow", "mlflow.MlflowClient"]),
        ("import torchvision", ["torchvision"]),
        ("from ..utils.io import file_lock", []),
        ("from .. import PACKAGE", []),
    ],
)
def test_a_forbidden_import_is_found(line: str, wrong: list[str]) -> None:
    text = f"def f():\n{line}" if line.startswith(" ") else line
    assert violations(text, Path("src/data/split.py")) == wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_and_files_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 320
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


# Each runs code that comes with the file; torch.load and np.load are asked for plain values explicitly.
EXECUTES = {"eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load"}
ASKED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_is_read_is_executed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in EXECUTES, f"{path.name}:{node.lineno} calls {name}"
            if name in ASKED:
                asked = {(word.arg, ast.unparse(word.value)) for word in node.keywords}
                key, value = ASKED[name]
                assert (key, str(value)) in asked, f"{path.name}:{node.lineno} calls {name} without {key}"


def test_the_same_pins_everywhere() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert yaml.safe_load((ROOT / "python_env.yaml").read_text())["dependencies"] == pins
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert conda[-1]["pip"] == pins
    dev = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert "-r requirements.txt" in dev
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    extras = project["project"]["optional-dependencies"]
    assert extras["dev"] == [line for line in dev if "==" in line]
    assert set(extras["docs"]) < set(extras["dev"])


def test_the_wheel_has_every_package_and_data_file() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT / "src") for path in SOURCES}
    names = {".".join(("mlproject", *folder.parts)) for folder in folders} | {"mlproject.config"}
    assert sorted(names) == settings["packages"]
    for path in filter(Path.is_file, (ROOT / "src").rglob("*")):
        package = ".".join(("mlproject", *path.parent.relative_to(ROOT / "src").parts))
        shipped = ["*.py", *settings["package-data"].get(package, [])]
        assert "__pycache__" in path.parts or any(path.match(pattern) for pattern in shipped), path


DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "PyYAML", "sqlalchemy": "SQLAlchemy"}
DISTRIBUTIONS |= {"jinja2": "Jinja2"}


def test_every_package_that_is_imported_is_pinned() -> None:
    pins = {line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    names = {
        name.partition(".")[0]
        for path in SOURCES
        for name in imports(path.read_text(), ".".join(path.relative_to(ROOT).parts[:-1]))
    }
    others = names - sys.stdlib_module_names - {"src"}
    assert {"torch", "mlflow", "scipy"} < others
    assert {DISTRIBUTIONS.get(name, name) for name in others} <= pins


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_files_that_the_docs_name_exist(page: Path) -> None:
    found = re.findall(r"\b(?:src|tests|benchmarks|config)/[\w/]+\.(?:py|yaml)\b", page.read_text())
    assert [path for path in found if not (ROOT / path).exists()] == []


def _spelled_once() -> set[str]:
    """Return the names of metrics, tags and statuses that mean nothing else: no settings, files, or words."""
    constants = [*vars(metric_names).items(), *vars(store_names).items()]
    words = {value for name, value in constants if name.isupper() and isinstance(value, str)}
    files = {word for word in words if word.endswith((".yaml", ".csv"))}
    distinctive = {word for word in words if re.search(r"[_./]", word) or word.isupper()}
    return distinctive - files - set(Config().flat())


def spelled(text: str) -> list[str]:
    """Return the names that a module spells as string literals, instead of importing the constants."""
    known = _spelled_once()
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return [node.value for node in nodes if isinstance(node.value, str) and node.value in known]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_metric_tag_and_status_name_is_spelled_in_one_module(path: Path) -> None:
    if path.stem not in ("names", "metric_names"):
        assert spelled(path.read_text()) == []


def test_a_name_that_is_spelled_again_is_found() -> None:
    known = _spelled_once()
    assert {"best_val_auc", "val_auc", "FINISHED", "rolled_back_to", "data.fingerprint", "system/"} < known
    planted = '"""FINISHED runs."""\nif run.status == "FINISHED":\n    score = run.metrics["best_val_auc"]'
    assert sorted(spelled(planted)) == ["FINISHED", "best_val_auc"]


# Words of an earlier private vocabulary, and phrases that have to be read twice.
WORDS = (
    r"(?i)\b(mend(s|ed|ing)?|anew|enthrone\w*|at hand|stands there|(has|have) (a|no) say|beside the loop)\b"
)
TEXTS = [*SOURCES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_plain_words(path: Path) -> None:
    assert [found[0] for found in re.finditer(WORDS, path.read_text())] == []


COMMANDS = sorted(path.stem for path in (ROOT / "src").glob("[!_]*.py") if "def main(" in path.read_text())

HELP = """import sys
from src.{command} import main
try:
    main(["--help"])
except SystemExit:
    print(sorted({{"torch", "torchvision", "mlflow"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_waits_for_no_library(command: str, run_python: Run) -> None:
    done = run_python("-c", HELP.format(command=command))
    assert done.stdout.splitlines()[-1] == "[]", done


def test_the_command_line_knows_every_command(run_python: Run) -> None:
    assert sorted(main.COMMANDS) == COMMANDS
    assert run_python("-m", "src", "promote", "--help").stdout.startswith("usage: python -m src.promote ")
    assert set(COMMANDS) <= set(run_python("-m", "src").stdout.split())
    wrong = run_python("-m", "src", "trian")
    assert (wrong.returncode, wrong.stderr) == (2, "error: trian: not a command; --help lists the commands\n")


TRAINING = ("main", "distributed")
LAUNCHER = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())


VALUES = {"significant": "0.5", "timeout": "2h"}


@pytest.mark.parametrize("name", PROJECT["entry_points"])
def test_every_entry_point_parses_with_all_parameters_empty_and_set(name: str) -> None:
    assert (ROOT / PROJECT["python_env"]).exists()
    entry = PROJECT["entry_points"][name]
    command = "train" if name in TRAINING else name
    parser = importlib.import_module(f"src.{command}")._parser()
    options = {action.dest: action for action in parser._actions}
    flags = {key for key, action in options.items() if action.const is True and action.nargs == "?"}
    names = [key for key in entry["parameters"] if key != "nproc"]
    assert set(names) <= set(options)
    for is_set in (False, True):
        words = {key: "true" if key in flags else VALUES.get(key, "1") for key in names} if is_set else {}
        given = {key: shlex.quote(words.get(key, "")) for key in names}
        filled = shlex.split(entry["command"].format(nproc="2", **given))
        if name == "distributed":
            assert filled[:6] == [*LAUNCHER, "2"]
            filled = ["python", *filled[6:]]
        assert filled[:3] == ["python", "-m", f"src.{command}"]
        args = parser.parse_args(filled[3:])
        expected = {key: (options[key].type or str)(word) for key, word in words.items()}
        defaults = {key: parser.get_default(key) for key in names}
        assert {key: getattr(args, key) for key in names} == defaults | expected


def test_params_do_not_clash_with_those_that_mlflow_run_logs() -> None:
    assert not set(PROJECT["entry_points"]["main"]["parameters"]) & set(Config().flat())


def test_no_folder_is_named_like_the_project_file() -> None:
    assert [path.name for path in ROOT.iterdir() if path.name.lower() == "mlproject"] == ["MLproject"]
