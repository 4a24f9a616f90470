"""One MLflow run from start to its true end."""

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import MlprojectError, StoreError, TrackingError, UserError
from src.tracking.names import ERROR, ROLE
from src.tracking.store import local_folder, open_store, reason, shown_uri
from src.utils.cli import warn
from src.utils.io import atomic_link
from src.utils.runtime import Stopped

if TYPE_CHECKING:
    from src.data.dataset import Dataset

_MAX_TAG = 5000  # MLflow refuses longer tag values
_CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}


class TrackedRun:
    """The record of one run in MLflow; satisfies the trainer's `Tracker`."""

    def __init__(self, run_id: str) -> None:
        """Wraps the active run ``run_id``."""
        import mlflow

        self._client = mlflow.MlflowClient()
        self.run_id = run_id
        self.info = self._client.get_run(run_id).info

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags, replacing those of the same name."""
        from mlflow.entities import RunTag

        self._client.log_batch(
            self.run_id, tags=[RunTag(key, str(value)[:_MAX_TAG]) for key, value in tags.items()]
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Records settings that the run does not hold yet; ``mlflow run`` has logged some by itself."""
        from mlflow.entities import Param

        there = self._client.get_run(self.run_id).data.params
        new = [Param(key, str(value)) for key, value in params.items() if key not in there]
        self._client.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records all metrics in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.run_id, [Metric(key, value, now, step) for key, value in metrics.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keeps a file with the run: a hard link where the store is on the same file system, else a copy.

        ``path`` must be a file that is only ever replaced, never written in place.
        """
        local = local_folder(self.info.artifact_uri)
        if local is None:
            self._client.log_artifact(self.run_id, str(path), folder)
        else:
            atomic_link(path, local / (folder or "") / path.name)

    def log_dataset(self, dataset: "Dataset", name: str) -> None:
        """Records which data went in, one input per split."""
        import mlflow
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        with warnings.catch_warnings():
            # It registers one class of source twice and warns that it must choose.
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(str(dataset.root))
        inputs: list[Any] = [
            MetaDataset(source, name=f"{name}-{split}", digest=dataset.fingerprint[:36])  # type: ignore[abstract]
            for split in dataset.splits
        ]
        mlflow.log_inputs(
            datasets=inputs,
            contexts=[_CONTEXTS[split] for split in dataset.splits],
            tags_list=[{"images": str(len(split))} for split in dataset.splits.values()],
        )

    def rename(self, name: str) -> None:
        """Gives the run a name that says what it is."""
        self._client.update_run(self.run_id, name=name)

    def finish(self, status: str, message: str | None = None) -> None:
        """Ends the run; a message goes with it as a tag."""
        import mlflow

        if message is not None:
            self.log_tags({ERROR: message})
        # First the fact, then MLflow's own book-keeping, which a second signal may cut short.
        self._client.set_terminated(self.run_id, status)
        mlflow.end_run(status)


@contextmanager
def tracked_run(tags: Mapping[str, str]) -> Iterator[TrackedRun]:
    """Starts a run, or takes the one that ``mlflow run`` has made for this process.

    The run ends FINISHED when the block ends, KILLED when a signal ended it, and FAILED on any
    error, with the message as the tag ``error``.

    Raises:
        StoreError: No run can be started.
        TrackingError: The store failed while the run was under way.
    """
    from mlflow import MlflowException

    run: TrackedRun | None = None
    try:
        run = _start(tags)
        yield run
        run.finish("FINISHED")
    except Stopped as stopped:
        _finish_anyway(run, "KILLED", str(stopped))
        raise
    except BaseException as error:
        message = _message(error)
        _finish_anyway(run, "FAILED", message)
        if run is not None and isinstance(error, MlflowException | UserError):
            # Whatever it is, it is no longer something to mend before training.
            raise TrackingError(message) from None
        raise


def _start(tags: Mapping[str, str]) -> TrackedRun:
    import mlflow

    # Set, this variable has the last word; the monitor is a thread that some machines forbid.
    wanted = None if "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING" in os.environ else True
    try:
        active = mlflow.start_run(tags=dict(tags), log_system_metrics=wanted)
    except mlflow.MlflowException as error:
        raise StoreError(f"{shown_uri()}: no run can be started: {reason(error)}") from None
    return TrackedRun(active.info.run_id)


def _message(error: BaseException) -> str:
    from mlflow import MlflowException

    if isinstance(error, MlflowException):
        return f"the tracking store {shown_uri()} failed: {reason(error)}; what is on disk is whole"
    if isinstance(error, MlprojectError):
        return error.public
    return str(error) if isinstance(error, Stopped) else f"{type(error).__name__}: {error}"


def _finish_anyway(run: TrackedRun | None, status: str, message: str) -> None:
    """Ends a run that goes wrong; a store that is gone as well must not hide what went wrong first."""
    import mlflow

    if run is None and (active := mlflow.active_run()) is not None:
        run = TrackedRun(active.info.run_id)
    if run is None:
        return
    try:
        run.finish(status, message)
    except Exception as error:  # whatever the store raises
        warn(f"the run could not be marked {status}: {reason(error)}")


def is_project_run() -> bool:
    """Whether ``mlflow run`` started this process and made a run for it."""
    return "MLFLOW_RUN_ID" in os.environ


def mark_project_run(role: str) -> None:
    """Says on the run that ``mlflow run`` made, where there is one, that it trains nothing."""
    if is_project_run():
        import mlflow

        mlflow.MlflowClient().set_tag(os.environ["MLFLOW_RUN_ID"], ROLE, role)


@contextmanager
def project_run_told() -> Iterator[None]:
    """Where ``mlflow run`` made a run for this process: tells it why the block ended before training."""
    try:
        yield
    except Stopped as stopped:
        _end_project_run("KILLED", stopped)
        raise
    except BaseException as error:
        _end_project_run("FAILED", error)
        raise


def _end_project_run(status: str, why: BaseException) -> None:
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None:
        return
    import mlflow

    try:
        open_store()
        client = mlflow.MlflowClient()
        client.set_tag(run_id, ERROR, _message(why)[:_MAX_TAG])
        client.set_terminated(run_id, status)
    except Exception as error:  # the store may be what is wrong
        warn(f"the run {run_id} could not be marked {status}: {reason(error)}")
