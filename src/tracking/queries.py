"""Queries over all runs of the store: candidates for promotion, counts, and how often a split was evaluated.

MLflow's own search loads every param, metric and tag of each run, which takes 22 s and more for 10,000 runs.
So a database is asked directly for the few fields that are needed; a test compares both answers.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import mlflow
import sqlalchemy as sa
from mlflow.entities import Experiment, ViewType
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
from mlflow.utils import get_results_from_paginated_fn
from sqlalchemy.orm import aliased
from sqlalchemy.pool import NullPool

from ..errors import UserError
from ..evaluation.metric_names import BEST_VAL_AUC
from . import names
from .store import is_database, is_server, mlflow_client, resolve_uri, shown_uri, store_errors
from .stored_run import StoredRun

_FILTER = (
    f"attributes.status = '{names.FINISHED}' AND metrics.{BEST_VAL_AUC} >= 0 AND metrics.{BEST_VAL_AUC} <= 1"
)
_RANKING_TAGS = (names.MODEL, names.MODALITY, names.DATA_FINGERPRINT, names.SPLIT_FINGERPRINT)
_PAGE = 1000
_LARGEST_PAGE = 50_000  # MLflow's limit


def find_candidates(experiment: str | None = None) -> list[StoredRun]:
    """Find the runs that may be promoted: FINISHED, with a finite ``best_val_auc`` and all tags.

    Args:
        experiment: Only runs of the experiment with this name.

    Raises:
        UserError: The experiment is not found.
        TrackingError: The store cannot be read.
    """
    find = _candidates_in_database if is_database(resolve_uri()) else _candidates_by_search
    with store_errors("the runs cannot be read"):
        return list(find(_experiments(experiment)))


def search_runs(filter_string: str = "", view: int = ViewType.ACTIVE_ONLY) -> Iterator[StoredRun]:
    """Yield all runs of all experiments that MLflow's search finds."""
    return _search(_experiments(), filter_string, view)


def count_runs() -> int:
    """Count the runs of the store, of any kind and status, without deleted runs."""
    if not is_database(resolve_uri()):
        return sum(1 for _ in search_runs())
    (row,) = _rows(sa.select(sa.func.count()).select_from(SqlRun).where(*_is_active(_experiments())))
    return int(row[0])


def count_evaluations(split_fingerprint: str, split: str) -> tuple[int, int]:
    """Count the runs that have scored a split: training runs, and evaluations.

    Each look at a split makes the next result on it a little too optimistic.

    Args:
        split_fingerprint: Identifies which images are in which split.
        split: The name of the split.

    Raises:
        TrackingError: The store cannot be read.
    """
    count = _roles_in_database if is_database(resolve_uri()) else _roles_by_search
    with store_errors("the runs cannot be read"):
        roles = count(split_fingerprint, f"{split}_auc")
    return roles.get("", 0), sum(number for role, number in roles.items() if role)


def _experiments(name: str | None = None) -> dict[str, Experiment]:
    """Return all experiments by id, or only the one with this name."""
    found = mlflow.search_experiments()
    if name is not None and name not in {experiment.name for experiment in found}:
        known = ", ".join(sorted(experiment.name for experiment in found))
        raise UserError(f"--experiment {name}: not found in {shown_uri()}, which has {known}")
    return {one.experiment_id: one for one in found if name in (None, one.name)}


def _search(
    experiments: dict[str, Experiment], filter_string: str, view: int = ViewType.ACTIVE_ONLY
) -> Iterator[StoredRun]:
    size = _PAGE if is_server(resolve_uri()) else _LARGEST_PAGE
    # Not mlflow.search_runs, whose pages are smaller; a file store reads all runs again for each page.
    search = partial(mlflow_client().search_runs, list(experiments), filter_string, view)
    for run in get_results_from_paginated_fn(lambda size, token: search(size, page_token=token), size):
        yield StoredRun.from_mlflow(run, experiments[run.info.experiment_id])


def _candidates_by_search(experiments: dict[str, Experiment]) -> Iterator[StoredRun]:
    for run in _search(experiments, _FILTER):
        if run.is_candidate and set(_RANKING_TAGS) <= set(run.tags):
            tags = {key: run.tags[key] for key in (*_RANKING_TAGS, names.ALLOWED_LEAKS) if key in run.tags}
            metrics = {BEST_VAL_AUC: run.val_auc}
            yield replace(run, metrics=metrics, tags=tags, params={}, name="", models=())


def _candidates_in_database(experiments: dict[str, Experiment]) -> Iterator[StoredRun]:
    metric: Any = aliased(SqlLatestMetric)
    role: Any = aliased(SqlTag)
    leaks: Any = aliased(SqlTag)
    tags: list[Any] = [aliased(SqlTag) for _ in _RANKING_TAGS]
    query: Any = sa.select(
        SqlRun.run_uuid,
        sa.cast(SqlRun.experiment_id, sa.String),
        SqlRun.artifact_uri,
        SqlRun.start_time,
        SqlRun.end_time,
        metric.value,
        leaks.value,
        *(tag.value for tag in tags),
    ).join(metric, (metric.run_uuid == SqlRun.run_uuid) & (metric.key == BEST_VAL_AUC))
    for tag, key in zip(tags, _RANKING_TAGS, strict=True):
        query = query.join(tag, (tag.run_uuid == SqlRun.run_uuid) & (tag.key == key))
    query = query.outerjoin(role, (role.run_uuid == SqlRun.run_uuid) & (role.key == names.ROLE))
    query = query.outerjoin(leaks, (leaks.run_uuid == SqlRun.run_uuid) & (leaks.key == names.ALLOWED_LEAKS))
    query = query.where(
        *_is_active(experiments),
        SqlRun.status == names.FINISHED,
        sa.not_(metric.is_nan),
        metric.value.between(0, 1),
        role.key.is_(None),
    )
    for run_id, experiment_id, uri, start, end, val_auc, allowed_leaks, *values in _rows(query):
        found = dict(zip(_RANKING_TAGS, values, strict=True))
        experiment = experiments[experiment_id]
        yield StoredRun(
            run_id,
            experiment_id,
            experiment.name,
            experiment.artifact_location or "",
            uri,
            start_time=start,
            end_time=end,
            metrics={BEST_VAL_AUC: val_auc},
            tags=found if allowed_leaks is None else found | {names.ALLOWED_LEAKS: allowed_leaks},
        )


def _roles_by_search(fingerprint: str, metric: str) -> Counter[str]:
    """Count runs with the metric on this split by role; training runs have the role ""."""
    runs = search_runs(f"tags.`{names.SPLIT_FINGERPRINT}` = '{fingerprint}'")
    return Counter(run.tags.get(names.ROLE, "") for run in runs if metric in run.metrics)


def _roles_in_database(fingerprint: str, metric: str) -> dict[str, int]:
    tag: Any = aliased(SqlTag)
    role: Any = aliased(SqlTag)
    query: Any = (
        sa.select(sa.func.coalesce(role.value, ""), sa.func.count())
        .select_from(SqlRun)
        .join(tag, (tag.run_uuid == SqlRun.run_uuid) & (tag.key == names.SPLIT_FINGERPRINT))
        .join(
            SqlLatestMetric, (SqlLatestMetric.run_uuid == SqlRun.run_uuid) & (SqlLatestMetric.key == metric)
        )
        .outerjoin(role, (role.run_uuid == SqlRun.run_uuid) & (role.key == names.ROLE))
        .where(*_is_active(_experiments()), tag.value == fingerprint)
        .group_by(sa.func.coalesce(role.value, ""))
    )
    return {str(name): int(number) for name, number in _rows(query)}


def _is_active(experiments: dict[str, Experiment]) -> list[Any]:
    """Return conditions for runs of these experiments that were not deleted."""
    ids = [int(experiment_id) for experiment_id in experiments]
    return [SqlRun.lifecycle_stage == "active", SqlRun.experiment_id.in_(ids)]


def _rows(query: Any) -> Iterator[Any]:  # noqa: ANN401 -- SQLAlchemy comes without MLflow's types
    with sa.create_engine(resolve_uri(), poolclass=NullPool).connect() as connection:
        yield from connection.execute(query)
