"""Paths in the store: where the files of runs and logged models are, and how to repair a moved store.

A store is data: anybody who can write to it can point a URI at any folder, and MLflow would follow it. So
files are only looked for in the folder that belongs to their run or logged model.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
from mlflow.utils.uri import append_to_uri_path
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from ..errors import ClaimError, TrackingError, UserError
from ..utils.cli import command
from ..utils.contained import contained
from ..utils.io import atomic_write_text
from ..utils.masking import masked_uri
from ..utils.project import local_folder, local_path
from .store import (
    is_database,
    is_server,
    open_store,
    resolve_uri,
    shown_uri,
    store_errors,
)

_ARTIFACTS = "artifacts"
_LONGEST_URI = 200  # characters of a URI in a message
_SHOWN = 5


def run_folder(run_id: str, uri: str, experiment_id: str, location: str) -> Path | None:
    """Return the folder of a run's artifacts on this machine.

    Args:
        run_id: The run's id.
        uri: The run's ``artifact_uri``.
        experiment_id: The id of the run's experiment.
        location: The experiment's ``artifact_location``.

    Returns:
        The folder without links, whether or not it exists; None if a server or a bucket has the files.

    Raises:
        ClaimError: The URI does not lead to the run's own folder in the experiment or the store.
    """
    return _own_folder(f"run {run_id}", uri, _locations(experiment_id, location), run_id, _ARTIFACTS)


def model_folder(model_id: str, uri: str, experiment_id: str, location: str) -> Path | None:
    """Return the folder of a logged model on this machine; see `run_folder`."""
    ending = ("models", model_id, _ARTIFACTS)
    return _own_folder(f"logged model {model_id}", uri, _locations(experiment_id, location), *ending)


def _locations(experiment_id: str, location: str) -> Iterable[str]:
    """Yield the experiment's own location, and the default location in a local store."""
    yield location
    path = local_path(resolve_uri())
    if path is not None:
        root = path if path.is_dir() else path.parent / "mlruns"
        yield str(root / experiment_id)


def _own_folder(whose: str, uri: str, locations: Iterable[str], *ending: str) -> Path | None:
    local = local_of(uri)
    for location in locations:
        root = local_of(location)
        if local is not None and root is not None:
            wanted = contained(root, root.joinpath(*ending))
            if wanted is not None and _resolved(local) == wanted:
                return wanted
        elif local is None and root is None and uri == append_to_uri_path(location, *ending):
            return None
    shown = masked_uri(uri).encode("unicode_escape").decode()[:_LONGEST_URI]
    raise ClaimError(
        f"{whose}: the store says that its files are at {shown}, which is not its own folder below the "
        "artifact location of its experiment; nothing there is read or changed. If the project was moved, "
        f"run {command('store relocate')}"
    )


def local_of(uri: str) -> Path | None:
    """Return the folder that a URI from the store names on this machine, None for anything else."""
    try:
        return local_folder(uri)
    except (MlflowException, ValueError, OSError):  # a file: URI of another machine, or not a URI
        return None


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL byte, a loop of links
        return None


_KEYS = ("artifact_location", "artifact_uri", "storage_location", "source")
_ID_KEYS = ("run_id", "model_id", "source")
_MIN_PARTS = 2


@dataclass(frozen=True)
class StoredPath:
    """A path that the store holds.

    Attributes:
        uri: The path, or ``file:`` URI.
        owner: What it belongs to, such as ``run 1a2b``.
        ids: Ids of the run and the model; a path that contains one of them belongs to it.
        has_files: Whether files must exist there: a model has files, a run may have none.
        replace: Writes another path in its place.
    """

    uri: str
    owner: str
    ids: frozenset[str]
    has_files: bool
    replace: Callable[[str], None]


def relocate() -> None:
    """Update the paths of a local store that was moved or copied to where its files are now.

    If the folder of a run or model exists below the store's own folder, the rest of its stored path is
    where the store was before. All paths that start there are changed; other paths stay as they are.
    A database is changed in one transaction.

    Raises:
        UserError: The store is not local.
        StoreError: The store does not exist.
        TrackingError: The store cannot be read or written, or files are still missing.
    """
    open_store(must_exist=True)
    uri = resolve_uri()
    store = local_path(uri)
    if store is None:
        where = "on the server's own machine" if is_server(uri) else "with MLflow's own tools"
        raise UserError(f"{shown_uri()}: only a local store can be relocated; do it {where}")
    base = store.parent.resolve()
    opened = _paths_in_database(uri) if is_database(uri) else _paths_in_files(store)
    with store_errors("the store's paths cannot be changed"), opened as stored:
        roots = [root for root, _ in Counter(_old_roots(stored, base)).most_common()]
        targets = [_moved(path, roots, base) for path in stored]
        pairs = list(zip(stored, targets, strict=True))
        for path, target in pairs:
            if target is not None:
                path.replace(target.as_uri() if path.uri.startswith("file:") else str(target))
        lost = [path.owner for path, target in pairs if _is_lost(path, target)]
    if roots:
        changed = sum(target is not None for target in targets)
        print(f"{shown_uri()}: {changed} paths that led to {', '.join(map(str, roots))} lead here now")
    else:
        print(f"{shown_uri()}: no path had to be changed")
    if lost:
        shown = ", ".join(lost[:_SHOWN]) + (" ..." if len(lost) > _SHOWN else "")
        raise TrackingError(f"the files of these are neither here nor where the store says: {shown}")


def _old_roots(stored: Iterable[StoredPath], base: Path) -> Iterator[Path]:
    """Yield where the store was before, for each path whose end exists below ``base``."""
    for one in stored:
        path = _path_of(one)
        if path is None or path.is_relative_to(base):
            continue
        parts = path.parts
        for start in range(1, len(parts) - _MIN_PARTS + 1):  # the longest end first
            is_own = not one.ids.isdisjoint(parts[start:])
            if is_own and os.path.exists(base.joinpath(*parts[start:])):  # noqa: PTH110 -- any name will do
                yield Path(*parts[:start])
                break


def _path_of(stored: StoredPath) -> Path | None:
    """Return the folder on this machine; None for another path, or one with ``..`` in it."""
    path = local_of(stored.uri)
    return None if path is None or ".." in path.parts else path


def _moved(stored: StoredPath, roots: Iterable[Path], base: Path) -> Path | None:
    path = _path_of(stored)
    if path is None or path.is_relative_to(base):
        return None
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return None if root is None else base / path.relative_to(root)


def _is_lost(stored: StoredPath, target: Path | None) -> bool:
    path = target or local_of(stored.uri)
    return stored.has_files and path is not None and not os.path.exists(path)  # noqa: PTH110


@contextmanager
def _paths_in_database(uri: str) -> Iterator[list[StoredPath]]:
    columns: list[tuple[Any, str, str, tuple[str, ...]]] = [
        (SqlExperiment, "artifact_location", "experiment", ()),
        (SqlRun, "artifact_uri", "run", ("run_uuid",)),
        (SqlLoggedModel, "artifact_location", "logged model", ("model_id",)),
        (SqlModelVersion, "storage_location", "model version", ("run_id", "source")),
        (SqlModelVersion, "source", "model version", ("run_id", "source")),
    ]
    with Session(sa.create_engine(uri, poolclass=NullPool)) as session, session.begin():
        found = []
        for table, column, kind, named in columns:
            for row in session.scalars(sa.select(table)):
                if value := getattr(row, column):
                    owner = f"{kind} {' '.join(map(str, sa.inspect(row).identity))}"
                    ids = _ids(getattr(row, name) for name in named)
                    has_files = kind not in ("experiment", "run")
                    found.append(StoredPath(value, owner, ids, has_files, partial(setattr, row, column)))
        yield found


def _ids(values: Iterable[Any]) -> frozenset[str]:
    """Return the ids among the values; a source such as ``models:/m-...`` holds one, too."""
    return frozenset(str(value).removeprefix("models:/") for value in values if value)


@contextmanager
def _paths_in_files(root: Path) -> Iterator[list[StoredPath]]:
    # Files behind a link do not belong to the store.
    metas = [path for path in root.rglob("meta.yaml") if path.is_file() and contained(root, path)]
    yield [path for meta in sorted(metas) for path in _paths_in_file(meta, root)]


def _paths_in_file(meta: Path, root: Path) -> Iterator[StoredPath]:
    values = yaml.safe_load(meta.read_text()) or {}

    def replace(key: str, text: str) -> None:
        values[key] = text
        atomic_write_text(meta, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    is_experiment = meta.parent.parent == root and "experiment_id" in values and "run_id" not in values
    for key in _KEYS:
        if isinstance(values.get(key), str):
            owner = str(meta.parent.relative_to(root))
            has_files = not is_experiment and key in ("artifact_location", "storage_location")
            ids = () if is_experiment else (values.get(name) for name in _ID_KEYS)
            yield StoredPath(values[key], owner, _ids(ids), has_files, partial(replace, key))
