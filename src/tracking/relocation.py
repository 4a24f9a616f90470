"""Paths inside a store that was moved: MLflow keeps them absolute, so they lead to where it was."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from src.errors import UserError
from src.tracking.store import (
    is_database,
    is_server,
    local_folder,
    local_path,
    resolve_uri,
    shown_uri,
    store_errors,
)
from src.utils.io import atomic_write_text

_KEYS = ("artifact_location", "artifact_uri", "storage_location", "source")
_MIN_PARTS = 2


@dataclass(frozen=True)
class Place:
    """One path that the store holds.

    Attributes:
        uri: The path, or ``file:`` URI.
        of: What it is of, such as ``run 1a2b``.
        has_id: Whether the path holds the id of a run or a model, so that it is no other's.
        has_files: Whether something lies there for certain: a run may have kept nothing, a model has files.
        put: Writes another one in its stead.
    """

    uri: str
    of: str
    has_id: bool
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
        path = local_folder(place.uri)
        if path is None or not place.has_id or path.is_relative_to(base):
            continue
        parts = path.parts
        for start in range(1, len(parts) - _MIN_PARTS + 1):  # the longest end first
            if base.joinpath(*parts[start:]).exists():
                yield Path(*parts[:start])
                break


def _moved(place: Place, roots: Iterable[Path], base: Path) -> Path | None:
    path = local_folder(place.uri)
    if path is None or path.is_relative_to(base):
        return None
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return None if root is None else base / path.relative_to(root)


def _is_lost(place: Place, target: Path | None) -> bool:
    path = target or local_folder(place.uri)
    return place.has_files and path is not None and not path.exists()


@contextmanager
def _in_database(uri: str) -> Iterator[list[Place]]:
    import sqlalchemy as sa
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
    from sqlalchemy.pool import NullPool

    columns: list[tuple[Any, Any, str]] = [
        (SqlExperiment, SqlExperiment.artifact_location, "experiment"),
        (SqlRun, SqlRun.artifact_uri, "run"),
        (SqlLoggedModel, SqlLoggedModel.artifact_location, "logged model"),
        (SqlModelVersion, SqlModelVersion.storage_location, "model version"),
        (SqlModelVersion, SqlModelVersion.source, "model version"),
    ]
    with sa.create_engine(uri, poolclass=NullPool).begin() as connection:
        places = []
        for table, column, kind in columns:
            keys = list(sa.inspect(table).primary_key)
            for value, *key in connection.execute(sa.select(column, *keys)):
                if value:
                    same = [own == part for own, part in zip(keys, key, strict=True)]
                    of = f"{kind} {' '.join(map(str, key))}"
                    put = partial(_put, connection, column, same)
                    places.append(
                        Place(value, of, kind != "experiment", kind not in ("experiment", "run"), put)
                    )
        yield places


def _put(connection: Any, column: Any, same: list[Any], text: str) -> None:  # noqa: ANN401
    import sqlalchemy as sa

    connection.execute(sa.update(column.class_).where(*same).values({column: text}))


@contextmanager
def _in_files(root: Path) -> Iterator[list[Place]]:
    yield [place for meta in sorted(root.rglob("meta.yaml")) for place in _of_file(meta, root)]


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
            yield Place(values[key], of, not is_experiment, has_files, partial(put, key))
