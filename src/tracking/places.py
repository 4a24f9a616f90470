"""Where MLflow puts the files of a run or a logged model: the only place where they are looked for.

A store is data: anybody who can write it can make a URI lead to any folder. MLflow itself follows it.
"""

from collections.abc import Iterable
from pathlib import Path

from ..errors import ClaimError
from ..utils.contained import contained
from ..utils.masking import masked_uri
from .store import local_folder, local_path, resolve_uri

ARTIFACTS = "artifacts"
_SHOWN = 200  # characters of a URI


def run_place(run_id: str, uri: str, experiment_id: str, location: str) -> Path | None:
    """Return the folder of a run's artifacts on this machine.

    Args:
        run_id: The run.
        uri: Its ``artifact_uri``.
        experiment_id: Its experiment.
        location: The experiment's ``artifact_location``.

    Returns:
        The folder without links, whether or not it exists; None if a server or a bucket has the files.

    Raises:
        ClaimError: The URI leads elsewhere than to the run's own folder there, or below the store.
    """
    return _place(f"run {run_id}", uri, _locations(experiment_id, location), run_id, ARTIFACTS)


def model_place(model_id: str, uri: str, experiment_id: str, location: str) -> Path | None:
    """Return the folder of a logged model on this machine; see `run_place`."""
    ending = ("models", model_id, ARTIFACTS)
    return _place(f"logged model {model_id}", uri, _locations(experiment_id, location), *ending)


def _locations(experiment_id: str, location: str) -> Iterable[str]:
    """The experiment's own location, and the default one of a local store."""
    yield location
    path = local_path(resolve_uri())
    if path is not None:
        root = path if path.is_dir() else path.parent / "mlruns"
        yield str(root / experiment_id)


def _place(whose: str, uri: str, locations: Iterable[str], *ending: str) -> Path | None:
    from mlflow.utils.uri import append_to_uri_path

    local = local_of(uri)
    for location in locations:
        root = local_of(location)
        if local is not None and root is not None:
            wanted = contained(root, root.joinpath(*ending))
            if wanted is not None and _resolved(local) == wanted:
                return wanted
        elif local is None and root is None and uri == append_to_uri_path(location, *ending):
            return None
    shown = masked_uri(uri).encode("unicode_escape").decode()[:_SHOWN]
    raise ClaimError(
        f"{whose}: the store says that its files are at {shown}, which is not its own folder below the "
        "artifact location of its experiment; nothing there is read or changed. If the project was moved, "
        "run python -m src.store relocate"
    )


def local_of(uri: str) -> Path | None:
    """Return the folder that a URI from the store names on this machine, None for anything else."""
    from mlflow.exceptions import MlflowException

    try:
        return local_folder(uri)
    except (MlflowException, ValueError, OSError):  # a file: URI of another machine, no URI at all
        return None


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL byte, a loop of links
        return None
