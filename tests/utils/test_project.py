"""The project folder and the config files of the package."""

from pathlib import Path

import pytest
from mlflow.tracking._tracking_service.utils import _use_tracking_uri
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from src.errors import ConfigError
from src.promotion.history import best_hparams_folder
from src.utils.config import Config
from src.utils.project import in_project, local_folder, project_folder


@pytest.mark.parametrize(
    "uri", ["mlruns", "/a/mlruns", "file:///a/b%20c", "file:a", "databricks", "http://h:5000", "sqlite:///x"]
)
def test_a_local_uri_is_the_one_that_mlflow_calls_so(uri: str) -> None:
    expected = Path(local_file_uri_to_path(uri)).absolute() if is_local_uri(uri) else None
    assert local_folder(uri) == expected


@pytest.mark.parametrize("uri", ["sqlite:///{}/mlflow.db", "{}/mlruns", "file://{}/mlruns"])
def test_results_lie_beside_a_local_store(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder / "other place"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(other))
    assert project_folder() == other
    config = Config.from_dict({})
    assert config.output_dir == other / "outputs"
    assert config.cache_dir == other / "outputs/cache"
    assert best_hparams_folder() == other / "config/best_hparams"
    assert in_project(folder / "elsewhere") == folder / "elsewhere"


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:1", "sqlite:///mlflow.db", "./mlruns"])
def test_else_in_the_working_folder(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert project_folder() == folder
    assert Config.from_dict({}).output_dir == Path("outputs")


def test_a_store_set_in_python_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # restored afterwards
    with _use_tracking_uri(f"sqlite:///{folder}/x/mlflow.db"):
        assert project_folder() == folder / "x"


def test_configs_of_the_package_are_found_everywhere_and_own_ones_first(folder: Path) -> None:
    assert Config.from_file("config/medmnist.yaml") != Config()
    own = folder / "config/medmnist.yaml"
    own.parent.mkdir()
    own.write_text("training: {epochs: 1}")
    assert Config.from_file("config/medmnist.yaml").training.epochs == 1
    with pytest.raises(ConfigError, match=f"^typo.yaml: config file not found .{folder}/typo.yaml.; "):
        Config.from_file("typo.yaml")
    with pytest.raises(ConfigError, match="config file not found"):
        Config.from_file("config/../MLproject")
