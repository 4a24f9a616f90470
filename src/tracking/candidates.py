"""The finished training runs of a store, a few fields of each, read in one pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .names import (
    ALLOWED_LEAKS,
    BEST_VAL_AUC,
    DATA_FINGERPRINT,
    MODALITY,
    MODEL,
    ROLE,
    SPLIT_FINGERPRINT,
)
from .store import is_database, pages, resolve_uri, shown_uri, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_FILTER = f"attributes.status = 'FINISHED' AND metrics.{BEST_VAL_AUC} >= 0 AND metrics.{BEST_VAL_AUC} <= 1"
_PAGE = 1000
_WHOLE = 50_000  # MLflow's largest page: a file store reads all runs again for each


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished training run, as far as ranking needs it.

    Attributes:
        run_id: Its id.
        model: Its tag ``model``.
        modality: Its tag ``modality``.
        val_auc: Its last ``best_val_auc``, 0 to 1.
        start_time: Milliseconds since the epoch.
        data_fingerprint: Which images and labels it saw.
        split_fingerprint: Which of them on which side.
        allowed_leaks: How much of its training data is also in another split, as text; None where the
            run does not say.
        end_time: Milliseconds since the epoch; None where the store does not say.
        experiment_id: Its experiment.
        artifact_uri: Where the store says that its files are.
    """

    run_id: str
    model: str
    modality: str
    val_auc: float
    start_time: int
    data_fingerprint: str
    split_fingerprint: str
    allowed_leaks: str | None = None
    end_time: int | None = None
    experiment_id: str = ""
    artifact_uri: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """Model and modality: what runs compete for."""
        return self.model, self.modality

    @property
    def is_leaky(self) -> bool:
        """Whether its scores may be too good, since its user has allowed a leak between splits."""
        return self.allowed_leaks not in (None, "0")

    @property
    def fingerprints(self) -> tuple[str, str]:
        """Runs with the same pair are comparable."""
        return self.data_fingerprint, self.split_fingerprint


def find_candidates(experiment: str | None = None) -> list[Candidate]:
    """Finds the runs that may be promoted: FINISHED, with a finite ``best_val_auc`` and all tags.

    A database is asked for those fields alone: MLflow's own search loads every param, metric and tag
    of each run, 22 s and more for 10,000 of them.

    Args:
        experiment: Only runs of the experiment of this name.

    Raises:
        UserError: There is no such experiment.
        TrackingError: The store cannot be read.
    """
    import mlflow

    client = mlflow.MlflowClient()
    read = _from_database if is_database(resolve_uri()) else _from_search
    with store_errors("the runs cannot be read"):
        return list(read(client, experiment_ids(client, experiment)))


def count_runs() -> int:
    """How many runs the store holds, of any kind and status, deleted ones apart."""
    import mlflow

    client = mlflow.MlflowClient()
    ids = experiment_ids(client, None)
    if not is_database(resolve_uri()):
        return sum(1 for _ in search_runs(client, ids, ""))
    import sqlalchemy as sa
    from mlflow.store.tracking.dbmodels.models import SqlRun

    (row,) = rows(sa.select(sa.func.count()).select_from(SqlRun).where(*active_runs(ids)))
    return int(row[0])


def experiment_ids(client: "MlflowClient", name: str | None) -> list[str]:
    """The ids of all experiments, or of the one of this name.

    Raises:
        UserError: There is no such experiment.
    """
    there = {
        e.name: e.experiment_id for e in pages(lambda token: client.search_experiments(page_token=token))
    }
    if name is None:
        return list(there.values())
    if name not in there:
        raise UserError(f"--experiment {name}: {shown_uri()} has {', '.join(sorted(there))}")
    return [there[name]]


def search_runs(client: "MlflowClient", ids: list[str], filter_string: str) -> Iterator["Run"]:
    """All runs of the experiments that MLflow's own search finds."""
    size = _PAGE if resolve_uri().startswith("http") else _WHOLE
    return pages(lambda token: client.search_runs(ids, filter_string, max_results=size, page_token=token))


def _from_search(client: "MlflowClient", ids: list[str]) -> Iterator[Candidate]:
    needed = {MODEL, MODALITY, DATA_FINGERPRINT, SPLIT_FINGERPRINT}
    for run in search_runs(client, ids, _FILTER):
        tags = run.data.tags
        if needed <= set(tags) and ROLE not in tags:
            yield Candidate(
                run.info.run_id,
                tags[MODEL],
                tags[MODALITY],
                run.data.metrics[BEST_VAL_AUC],
                run.info.start_time,
                tags[DATA_FINGERPRINT],
                tags[SPLIT_FINGERPRINT],
                tags.get(ALLOWED_LEAKS),
                run.info.end_time,
                run.info.experiment_id,
                run.info.artifact_uri,
            )


def _from_database(_client: "MlflowClient", ids: list[str]) -> Iterator[Candidate]:
    """The same by one query over MLflow's tables; a test holds both answers against each other."""
    import sqlalchemy as sa
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
    from sqlalchemy.orm import aliased

    metric: Any = aliased(SqlLatestMetric)
    role: Any = aliased(SqlTag)
    leaks: Any = aliased(SqlTag)
    tags: list[Any] = [aliased(SqlTag) for _ in range(4)]
    query: Any = sa.select(
        SqlRun.run_uuid,
        tags[0].value,
        tags[1].value,
        metric.value,
        SqlRun.start_time,
        tags[2].value,
        tags[3].value,
        leaks.value,
        SqlRun.end_time,
        sa.cast(SqlRun.experiment_id, sa.String),
        SqlRun.artifact_uri,
    ).join(metric, (metric.run_uuid == SqlRun.run_uuid) & (metric.key == BEST_VAL_AUC))
    for tag, key in zip(tags, (MODEL, MODALITY, DATA_FINGERPRINT, SPLIT_FINGERPRINT), strict=True):
        query = query.join(tag, (tag.run_uuid == SqlRun.run_uuid) & (tag.key == key))
    query = query.outerjoin(role, (role.run_uuid == SqlRun.run_uuid) & (role.key == ROLE))
    query = query.outerjoin(leaks, (leaks.run_uuid == SqlRun.run_uuid) & (leaks.key == ALLOWED_LEAKS))
    query = query.where(
        *active_runs(ids),
        SqlRun.status == "FINISHED",
        sa.not_(metric.is_nan),
        metric.value.between(0, 1),
        role.key.is_(None),
    )
    for row in rows(query):
        yield Candidate(*row)


def active_runs(ids: list[str]) -> list[Any]:
    """Conditions of a query over MLflow's tables: runs of these experiments that were not deleted."""
    from mlflow.store.tracking.dbmodels.models import SqlRun

    return [SqlRun.lifecycle_stage == "active", SqlRun.experiment_id.in_([int(number) for number in ids])]


def rows(query: Any) -> Iterator[Any]:  # noqa: ANN401 -- SQLAlchemy comes without MLflow's types
    """The rows that the store's database answers a query with."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    with create_engine(resolve_uri(), poolclass=NullPool).connect() as connection:
        yield from connection.execute(query)
