"""The user's project folder, and the config files that come with this package."""

import os
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SQLITE = "sqlite:///"
_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
_CONFIGS = _PACKAGE / "config" if (_PACKAGE / "config").is_dir() else _CHECKOUT / "config"


def local_path(uri: str) -> Path | None:
    """Return the database file or folder of a local tracking store, None for a server or another database."""
    if uri.startswith(_SQLITE):
        return Path(unquote(uri.removeprefix(_SQLITE)).split("?")[0]).absolute()
    return local_folder(uri)


def local_folder(uri: str) -> Path | None:
    """Return the folder that a plain path or ``file:`` URI names, None for any other URI."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).absolute()
    return None if parts.scheme or uri == "databricks" else Path(unquote(uri)).absolute()


def project_folder() -> Path:
    """Return the folder of outputs, cache and ``config/best_hparams``.

    It is the folder of the local tracking store; the working folder if the store is elsewhere.
    """
    # mlflow.set_tracking_uri sets the variable as well; without it MLflow uses the working folder.
    store = local_path(os.environ.get("MLFLOW_TRACKING_URI", ""))
    return Path.cwd() if store is None or store == Path.cwd() else store.parent


def in_project(path: str | Path) -> Path:
    """Return a path below the project folder; a relative one if that is the working folder."""
    folder, path = project_folder(), Path(path).expanduser()
    return path if folder.resolve() == Path.cwd().resolve() else folder / path


def enter_project() -> None:
    """Change to the project folder if ``mlflow run`` started this process in the checkout.

    Paths that the user typed, and outputs, then belong to the folder where the user is.
    """
    here, folder = Path.cwd().resolve(), project_folder()
    if "MLFLOW_RUN_ID" in os.environ and here == _CHECKOUT != folder.resolve():
        search = [str(_CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(search)  # for child processes
        sys.path[:] = [str(here) if entry == "" else entry for entry in sys.path]
        os.chdir(folder)


def find_config(path: Path) -> Path:
    """Return the path of a config file: as given, or in this package if ``config/`` here has no such file."""
    shipped = _CONFIGS.parent / path
    is_shipped = not path.is_absolute() and path.parts[:1] == ("config",) and ".." not in path.parts
    return shipped if is_shipped and not path.exists() and shipped.is_file() else path
