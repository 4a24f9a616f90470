"""What a growing store costs: starting a run, logging an epoch, finding candidates, promoting, doctor.

python -m benchmarks.promote [--runs 100,1000,10000]

Makes an SQLite store for each number: so many bulk runs of ten groups (40 params, 8 metrics with 20 steps, 8
tags each), and in every group one real run that is better. Times `promote` on all groups at
once, with nothing new, and with two new groups, imports apart, and reads all runs once for comparison.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from sqlalchemy import create_engine, insert

from benchmarks.measuring import keep, python, show
from src.promotion.select import Request
from src.promotion.workflow import promote
from src.store import main as store
from src.tracking.queries import find_candidates
from src.tracking.run import tracked_run
from src.tracking.store import open_store
from tests.images import write_npz
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
    """Fill the tables behind MLflow's back, a thousand runs at a time."""
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


def read_all() -> Iterator[object]:
    """Every run, as MLflow's search gives them."""
    client, token = mlflow.MlflowClient(), None
    while True:
        page = client.search_runs(["0"], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def a_run() -> None:
    """Start and end an empty run."""
    with tracked_run({}):
        pass


def epochs(count: int) -> None:
    """Start and end a run that logs so many epochs."""
    with tracked_run({}) as run:
        for step in range(1, count + 1):
            run.log_metrics(dict.fromkeys(METRICS, 0.5), step)


def new_groups(npz: Path) -> None:
    """Two groups more."""
    for modality in ("X", "Y"):
        make_run(npz, 1.0, modality=modality)


def measure(count: int) -> dict[str, float]:
    """Fill a store in the working folder and return seconds by what they are of."""
    npz = write_npz(Path("small.npz").absolute(), val=60)
    open_store()
    bulk(count, npz)
    for model, modality in GROUPS:
        make_run(npz, 1.0, model=model, modality=modality)
    seconds: dict[str, float] = {}

    def timed(what: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        seconds[what] = time.perf_counter() - started

    a_run()  # whatever is imported at first use
    timed("start and end a run", a_run)
    timed("the same, with 100 epochs", lambda: epochs(100))
    timed("find candidates", find_candidates)
    timed("promote ten groups, first", lambda: promote(Request()))
    timed("promote, nothing new", lambda: promote(Request()))
    new_groups(npz)
    timed("promote two new groups", lambda: promote(Request()))
    timed("doctor", lambda: store(["doctor"]))
    timed("read all runs by search", lambda: sum(1 for _ in read_all()))
    seconds["peak memory in MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return seconds


def main() -> None:
    """Measures in a process for each number of runs, and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.promote", description=__doc__)
    parser.add_argument("--runs", default="100,1000,10000")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        with redirect_stdout(sys.stderr):
            measured = measure(args.measure)
        print(json.dumps(measured))
        return
    found: dict[str, dict[str, float]] = {}
    for count in args.runs.split(","):
        with tempfile.TemporaryDirectory(prefix="store-") as folder:
            told = python(Path(folder), "-m", "benchmarks.promote", "--measure", count)
        found[count] = json.loads(told.splitlines()[-1])
    rows = [[what, *(f"{of[what]:.3g}" for of in found.values())] for what in next(iter(found.values()))]
    show(["seconds in a store of", *(f"{count} runs" for count in found)], rows)
    keep(args.json, found)


if __name__ == "__main__":
    main()
