"""How long promotion takes in a store of many runs, against reading them all through MLflow's search.

python -m benchmarks.promote [RUNS]      (10,000 unless told; in an empty folder)

Makes a store in the working folder: RUNS bulk runs of ten groups (40 params, 8 metrics with 20 steps, 8 tags
each), and in every group one real run that is better. Times `promote` on all groups at once (first), with
nothing new (again), and with two new groups (new), imports apart, and reads all runs once for comparison.
"""

import resource
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from sqlalchemy import create_engine, insert

from src.promotion.decide import Request
from src.promotion.flow import promote
from src.tracking.candidates import find_candidates
from src.tracking.store import open_store
from tests.conftest import write_npz
from tests.promotion.runs import data_of, make_run

GROUPS = [(model, modality) for model in ("resnet18", "swin_t") for modality in ("A", "P", "V", "N", "D")]
METRICS = [
    "train_loss",
    "val_loss",
    "val_acc",
    "val_auc",
    "val_sensitivity",
    "val_specificity",
    "best_val_auc",
    "lr",
]


def bulk(count: int, npz: Path) -> None:
    """Fills the tables behind MLflow's back, a thousand runs at a time."""
    random = np.random.default_rng(0)
    dataset = data_of(str(npz))
    shared = {"data.fingerprint": dataset.fingerprint, "split.fingerprint": dataset.split_fingerprint}
    shared |= {"config.sha256": "0" * 64, "seed": "0", "mlflow.user": "me", "env.torch": "2.13.0"}
    engine = create_engine("sqlite:///mlflow.db")
    for start in range(0, count, 1000):
        ids = [uuid.uuid4().hex for _ in range(min(1000, count - start))]
        rows: dict[Any, list[dict[str, Any]]] = {
            SqlRun: [],
            SqlParam: [],
            SqlTag: [],
            SqlMetric: [],
            SqlLatestMetric: [],
        }
        for number, run in enumerate(ids, start):
            model, modality = GROUPS[number % len(GROUPS)]
            rows[SqlRun].append(
                {
                    "run_uuid": run,
                    "name": run[:8],
                    "experiment_id": 0,
                    "status": "FINISHED",
                    "source_type": "LOCAL",
                }
                | {"lifecycle_stage": "active", "start_time": number, "end_time": number + 1, "user_id": "me"}
                | {"artifact_uri": f"mlruns/0/{run}/artifacts"}
            )
            rows[SqlParam] += [{"key": f"training.p{i}", "value": str(i), "run_uuid": run} for i in range(40)]
            tags = shared | {"model": model, "modality": modality}
            rows[SqlTag] += [{"key": key, "value": value, "run_uuid": run} for key, value in tags.items()]
            values = random.uniform(0.5, 0.8, (len(METRICS), 20))
            for key, series in zip(METRICS, values, strict=True):
                points = [
                    {
                        "key": key,
                        "value": float(v),
                        "timestamp": step,
                        "step": step,
                        "is_nan": False,
                        "run_uuid": run,
                    }
                    for step, v in enumerate(series)
                ]
                rows[SqlMetric] += points
                rows[SqlLatestMetric].append(points[-1])
        with engine.begin() as connection:
            for table, values_of in rows.items():
                connection.execute(insert(table), values_of)


def timed(what: str, work: Callable[[], object]) -> float:
    """Prints how long ``work`` took, and the process's peak memory."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:28} {seconds:7.2f} s    peak memory so far {peak:6.0f} MiB", flush=True)
    return seconds


def read_all() -> Iterator[object]:
    """Every run, as MLflow's search gives them."""
    client, token = mlflow.MlflowClient(), None
    while True:
        page = client.search_runs(["0"], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def main(count: int) -> None:
    """Fills a store and prints the times."""
    npz = write_npz(Path("small.npz").absolute(), val=60)
    open_store()
    timed(f"fill with {count} runs", lambda: bulk(count, npz))
    for model, modality in GROUPS:
        make_run(npz, 1.0, model=model, modality=modality)
    timed("find candidates", find_candidates)
    first = timed("promote, ten groups, first", lambda: promote(Request()))
    again = timed("promote, nothing new", lambda: promote(Request()))
    for modality in ("X", "Y"):
        make_run(npz, 1.0, modality=modality)
    new = timed("promote, two new groups", lambda: promote(Request()))
    full = timed("read all runs by search", lambda: sum(1 for _ in read_all()))
    print(
        f"of one full read: first {first / full:.2f}, again {again / full:.2f}, new groups {new / full:.2f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
