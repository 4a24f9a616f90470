"""How often a split has been looked at: each look makes the next result a little too good."""

from typing import TYPE_CHECKING, Any

from .candidates import active_runs, experiment_ids, rows, search_runs
from .names import ROLE, SPLIT_FINGERPRINT
from .store import is_database, resolve_uri, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient


def count_looks(split_fingerprint: str, split: str) -> tuple[int, int]:
    """Counts the runs that have scored a split: trainings, and evaluations.

    Args:
        split_fingerprint: Which images are on which side.
        split: The side.

    Raises:
        TrackingError: The store cannot be read.
    """
    import mlflow

    client, metric = mlflow.MlflowClient(), f"{split}_auc"
    count = _in_database if is_database(resolve_uri()) else _by_search
    with store_errors("the runs cannot be read"):
        roles = count(client, split_fingerprint, metric)
    evaluations = sum(number for role, number in roles.items() if role)
    return roles.get("", 0), evaluations


def _by_search(client: "MlflowClient", fingerprint: str, metric: str) -> dict[str, int]:
    """How many runs of each role, "" for trainings, have the metric on this split."""
    found: dict[str, int] = {}
    chosen = f"tags.`{SPLIT_FINGERPRINT}` = '{fingerprint}'"
    for run in search_runs(client, experiment_ids(client, None), chosen):
        if metric in run.data.metrics:
            role = run.data.tags.get(ROLE, "")
            found[role] = found.get(role, 0) + 1
    return found


def _in_database(client: "MlflowClient", fingerprint: str, metric: str) -> dict[str, int]:
    """The same by one query over MLflow's tables, which a search would read whole."""
    import sqlalchemy as sa
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
    from sqlalchemy.orm import aliased

    tag: Any = aliased(SqlTag)
    role: Any = aliased(SqlTag)
    query: Any = (
        sa.select(sa.func.coalesce(role.value, ""), sa.func.count())
        .select_from(SqlRun)
        .join(tag, (tag.run_uuid == SqlRun.run_uuid) & (tag.key == SPLIT_FINGERPRINT))
        .join(
            SqlLatestMetric, (SqlLatestMetric.run_uuid == SqlRun.run_uuid) & (SqlLatestMetric.key == metric)
        )
        .outerjoin(role, (role.run_uuid == SqlRun.run_uuid) & (role.key == ROLE))
        .where(*active_runs(experiment_ids(client, None)), tag.value == fingerprint)
        .group_by(sa.func.coalesce(role.value, ""))
    )
    return {str(name): int(number) for name, number in rows(query)}
