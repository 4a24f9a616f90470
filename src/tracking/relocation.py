"""Paths inside a store that was moved: MLflow keeps them absolute, so they lead to where it was."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..utils.contained import contained
from ..utils.io import atomic_write_text
from .places import local_of
from .store import (
    is_database,
    is_server,
    local_path,
    resolve_uri,
    shown_uri,
    store_errors,
)

_KEYS = ("artifact_location", "artifact_uri", "storage_location", "source")
_ID_KEYS = ("run_id", "model_id", "source")
_MIN_PARTS = 2


@dataclass(frozen=True)
class Place:
    """One path that the store holds.

    Attributes:
        uri: The path, or ``file:`` URI.
        of: What it is of, such as ``run 1a2b``.
        ids: Ids of its run and its model: a path that holds one is no other's.
        has_files: Whether something lies there for certain: a run may have kept nothing, a model has files.
        put: Writes another one in its stead.
    """

    uri: str
    of: str
    ids: frozenset[str]
    has_files: bool
    put: Callable[[str], None]


@dataclass(frozen=True)
class Relocated:
    """What was done: how many paths were changed, where from, and what still leads nowhere."""

    changed: int
    roots: tuple[Path, ...]
    lost: tuple[str, ...]


def relocate() -> Relocated:
    """Points every path of a local store to where its files are now: beside the store.

    A path belongs here where the same run's or model's folder lies below the store's own folder; what
    such paths have in common in front is where the store was, and all that begin so are changed. Paths to
    elsewhere stay as they are. A database is changed in one transaction.

    Raises:
        UserError: The store is a server's.
        TrackingError: It cannot be read or written.
    """
    uri = resolve_uri()
    path = local_path(uri)
    if path is None:
        where = "on the server's own machine" if is_server(uri) else "with MLflow's own tools"
        raise UserError(f"{shown_uri()}: only a local store can be relocated; do it {where}")
    base = path.parent.resolve()
    opened = _in_database(uri) if is_database(uri) else _in_files(path)
    with store_errors("the store's paths cannot be changed"), opened as places:
        roots = [root for root, _ in Counter(_old_roots(places, base)).most_common()]
        targets = [_moved(place, roots, base) for place in places]
        for place, target in zip(places, targets, strict=True):
            if target is not None:
                place.put(target.as_uri() if place.uri.startswith("file:") else str(target))
        lost = [place.of for place, target in zip(places, targets, strict=True) if _is_lost(place, target)]
    return Relocated(sum(target is not None for target in targets), tuple(roots), tuple(lost))


def _old_roots(places: Iterable[Place], base: Path) -> Iterator[Path]:
    """Where the store was, by each path whose end lies here."""
    for place in places:
        path = _path_of(place)
        if path is None or path.is_relative_to(base):
            continue
        parts = path.parts
        for start in range(1, len(parts) - _MIN_PARTS + 1):  # the longest end first
            is_own = not place.ids.isdisjoint(parts[start:])
            if is_own and os.path.exists(base.joinpath(*parts[start:])):  # noqa: PTH110 -- any name will do
                yield Path(*parts[:start])
                break


def _path_of(place: Place) -> Path | None:
    """The folder that a place names on this machine; None for a path that could lead out of where it goes."""
    path = local_of(place.uri)
    return None if path is None or ".." in path.parts else path


def _moved(place: Place, roots: Iterable[Path], base: Path) -> Path | None:
    path = _path_of(place)
    if path is None or path.is_relative_to(base):
        return None
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return None if root is None else base / path.relative_to(root)


def _is_lost(place: Place, target: Path | None) -> bool:
    path = target or local_of(place.uri)
    return place.has_files and path is not None and not os.path.exists(path)  # noqa: PTH110


@contextmanager
def _in_database(uri: str) -> Iterator[list[Place]]:
    import sqlalchemy as sa
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
    from sqlalchemy.pool import NullPool

    version_ids = (SqlModelVersion.run_id, SqlModelVersion.source)
    columns: list[tuple[Any, Any, str, tuple[Any, ...]]] = [
        (SqlExperiment, SqlExperiment.artifact_location, "experiment", ()),
        (SqlRun, SqlRun.artifact_uri, "run", (SqlRun.run_uuid,)),
        (SqlLoggedModel, SqlLoggedModel.artifact_location, "logged model", (SqlLoggedModel.model_id,)),
        (SqlModelVersion, SqlModelVersion.storage_location, "model version", version_ids),
        (SqlModelVersion, SqlModelVersion.source, "model version", version_ids),
    ]
    with sa.create_engine(uri, poolclass=NullPool).begin() as connection:
        places = []
        for table, column, kind, named in columns:
            keys = list(sa.inspect(table).primary_key)
            for value, *rest in connection.execute(sa.select(column, *keys, *named)):
                if value:
                    key, ids = rest[: len(keys)], _ids(rest[len(keys) :])
                    same = [own == part for own, part in zip(keys, key, strict=True)]
                    of = f"{kind} {' '.join(map(str, key))}"
                    put = partial(_put, connection, column, same)
                    places.append(Place(value, of, ids, kind not in ("experiment", "run"), put))
        yield places


def _ids(values: Iterable[Any]) -> frozenset[str]:
    """Ids among the values: a model's source names it, such as ``models:/m-...``."""
    return frozenset(str(value).removeprefix("models:/") for value in values if value)


def _put(connection: Any, column: Any, same: list[Any], text: str) -> None:  # noqa: ANN401
    import sqlalchemy as sa

    connection.execute(sa.update(column.class_).where(*same).values({column: text}))


@contextmanager
def _in_files(root: Path) -> Iterator[list[Place]]:
    # A file that is reached through a link is not the store's to rewrite.
    metas = [path for path in root.rglob("meta.yaml") if path.is_file() and contained(root, path)]
    yield [place for meta in sorted(metas) for place in _of_file(meta, root)]


def _of_file(meta: Path, root: Path) -> Iterator[Place]:
    values = yaml.safe_load(meta.read_text()) or {}

    def put(key: str, text: str) -> None:
        values[key] = text
        atomic_write_text(meta, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    is_experiment = meta.parent.parent == root and "experiment_id" in values and "run_id" not in values
    for key in _KEYS:
        if isinstance(values.get(key), str):
            of = str(meta.parent.relative_to(root))
            has_files = not is_experiment and key in ("artifact_location", "storage_location")
            ids = () if is_experiment else (values.get(name) for name in _ID_KEYS)
            yield Place(values[key], of, _ids(ids), has_files, partial(put, key))
