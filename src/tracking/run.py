"""Recording of one MLflow run, from its start to its final status."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow import MlflowException
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelInput
from mlflow.tracking import fluent
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NAME

from ..errors import StoreError, TrackingError, UserError
from ..utils.cli import command, warn
from ..utils.io import atomic_link, remove_temps
from ..utils.project import local_folder
from ..utils.runtime import Stopped
from .delivery import Delivery, read_run_checked, retry_while_unreachable
from .heartbeat import HeartbeatThread, heartbeat_interval, heartbeat_tag
from .journal import DATASETS, METRICS, PARAMS, TAGS, Item
from .logged_model import log_model, save_model
from .names import ERROR, FAILED, FINISHED, KILLED, RUNNING
from .outbox import Outbox, UndeliveredError, read_patience
from .project_run import take_project_run
from .store import (
    error_message,
    http_retries,
    is_server,
    mlflow_client,
    quiet_client,
    reason,
    resolve_uri,
    shown_uri,
)
from .stored_run import clear_error
from .system_metrics import Monitor, wants_system_metrics

if TYPE_CHECKING:
    from torch import nn

    from ..data.dataset import Dataset

_CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}


class TrackedRun:
    """An active run in MLflow; satisfies the trainer's `Tracker` protocol.

    A local store gets everything at once. For a server everything goes through an `Outbox`, so that
    training neither waits for the server nor stops when it becomes unreachable.
    """

    def __init__(self, run_id: str, *, is_resumed: bool = False) -> None:
        """Wrap the active run ``run_id``.

        Args:
            run_id: The run's id.
            is_resumed: Whether the run is resumed, so that the store may hold its metrics already.
        """
        self._client = client = mlflow_client()
        self._delivery = Delivery(run_id, Path())
        self._outbox: Outbox | None = None
        self._monitor: Monitor | None = None
        self._heartbeat: HeartbeatThread | None = None
        self._results: Path | None = None
        self.run_id = run_id
        self.is_resumed = is_resumed
        run = retry_while_unreachable(lambda: read_run_checked(client, run_id), read_patience())
        self.info = run.info
        self._model_steps = {o.step for o in run.outputs.model_outputs} if run.outputs else set[int]()

    def start_heartbeat(self, seconds: float) -> None:
        """Renew the heartbeat tag at this interval until the run ends."""
        self._heartbeat = HeartbeatThread(self.log_tags, seconds)

    def keep_in(self, results: Path) -> None:
        """Keep what a server has not confirmed in ``results`` from now on, while training continues."""
        self._results = results
        artifacts = local_folder(self.info.artifact_uri)
        if self.is_resumed and artifacts is not None:
            remove_temps(artifacts)
        if is_server(resolve_uri()):
            self._outbox = Outbox(results, self.run_id)
            if wants_system_metrics():
                monitor = partial(Monitor, self.run_id, self.log_metrics)
                self._monitor = retry_while_unreachable(monitor, read_patience())

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing tags of the same name."""
        self._send(TAGS, {key: str(value) for key, value in tags.items()})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params that the run does not have yet; ``mlflow run`` logs some by itself."""
        self._send(PARAMS, {key: str(value) for key, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics in one request."""
        now = int(time.time() * 1000)
        self._send(METRICS, {"step": step, "timestamp": now, "values": dict(metrics)})

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        if self._outbox is None:
            self._delivery.send(Item(0, kind, content, is_doubtful=self.is_resumed))
        else:
            self._outbox.put(kind, content, is_doubtful=self.is_resumed)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file: as a hard link if the store is on the same file system, else as a copy.

        ``path`` must be a file that is always replaced and never written in place.
        """
        local = local_folder(self.info.artifact_uri)
        if local is not None:
            atomic_link(path, local / (folder or "") / path.name)
        elif self._outbox is not None:
            self._outbox.put_file(path, folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def has_model(self, step: int) -> bool:
        """Return whether the run had a logged model of this epoch when it was started or resumed."""
        return step in self._model_steps

    def log_model(self, module: "nn.Module", *, step: int, **options: Any) -> None:  # noqa: ANN401
        """Log a model; the options are those of `src.tracking.logged_model.save_model`."""

        def save(folder: Path) -> None:
            save_model(module, folder, **options)

        if self._outbox is None:
            log_model(self._client, self.run_id, save, step, self._results)
        else:
            self._outbox.put_model(save, step)

    def log_dataset(self, dataset: "Dataset", name: str) -> None:
        """Log the data set, one input per split."""
        with warnings.catch_warnings():
            # MLflow registers a source class twice and warns that the choice is ambiguous.
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(str(dataset.root))
        inputs = []
        for split, samples in dataset.splits.items():
            meta: Any = MetaDataset(source, name=f"{name}-{split}", digest=dataset.fingerprint[:36])  # type: ignore[abstract]
            tags = {MLFLOW_DATASET_CONTEXT: _CONTEXTS[split], "images": str(len(samples))}
            inputs.append({"dataset": meta.to_dict(), "tags": tags})
        self._send(DATASETS, {"inputs": inputs})

    def link_model(self, source: str) -> None:
        """Log a logged model, ``models:/m-...``, as an input."""
        self._client.log_inputs(self.run_id, models=[LoggedModelInput(source.removeprefix("models:/"))])

    def rename(self, name: str) -> None:
        """Set the run's display name."""
        self.log_tags({MLFLOW_RUN_NAME: name})

    def set_running(self) -> None:
        """Set the status back to RUNNING after another process that records in the run has ended it."""
        if self._client.get_run(self.run_id).info.status != RUNNING:
            self._client.update_run(self.run_id, status=RUNNING)

    def finish(self, status: str, message: str | None = None) -> None:
        """Set the run's final status, with a message as a tag.

        Raises:
            UndeliveredError: The server did not take everything; the rest is in the journal.
        """
        try:
            if self._outbox is None:
                self._end(status, message)
            else:
                self._end_delivered(self._outbox, status, message)
            if status == FINISHED:
                clear_error(self.run_id)
        finally:
            # Only now, since the last delivery to a server can take long.
            if self._heartbeat is not None:
                self._heartbeat.stop()
            _forget_active_run(self.run_id)

    def _end(self, status: str, message: str | None) -> None:
        if message is not None:
            self.log_tags({ERROR: message})
        # First the status, then MLflow's own bookkeeping, which a second signal may interrupt.
        self._client.set_terminated(self.run_id, status)
        mlflow.end_run(status)

    def _end_delivered(self, outbox: Outbox, status: str, message: str | None) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        if message is not None and not outbox.has_status:
            with contextlib.suppress(OSError):  # the disk may be full; the status is more important
                self.log_tags({ERROR: message})
        outbox.put_status(status)
        outbox.close(status)


def _forget_active_run(run_id: str) -> None:
    """Remove the run from MLflow's stack, whose runs it would mark FINISHED when the process ends."""
    runs = fluent._active_run_stack.get()
    runs[:] = [run for run in runs if run.info.run_id != run_id]
    monitor = fluent.run_id_to_system_metrics_monitor.pop(run_id, None)
    if monitor is not None:
        monitor._shutdown_event.set()  # its own `finish` would wait for the store


@contextmanager
def tracked_run(tags: Mapping[str, str], run_id: str | None = None) -> Iterator[TrackedRun]:
    """Start a run, or use the one that ``mlflow run`` created for this process.

    The run ends FINISHED at the end of the block, KILLED after a signal, and FAILED on any error, with
    the message as the tag ``error``.

    Args:
        tags: The run's tags.
        run_id: A run to resume, which gets the status RUNNING again; None starts a new run.

    Raises:
        StoreError: No run can be started.
        TrackingError: The store failed during the run, or did not get everything.
    """
    # Only the outbox retries, since it knows what must not be sent twice.
    with http_retries(0), quiet_client():
        yield from _tracked(tags, run_id)


def _tracked(tags: Mapping[str, str], run_id: str | None) -> Iterator[TrackedRun]:
    run: TrackedRun | None = None
    try:
        run = _start(tags, run_id)
        yield run
        run.finish(FINISHED)
    except UndeliveredError:
        raise
    except Stopped as stopped:
        _finish_anyway(run, KILLED, str(stopped))
        raise
    except BaseException as error:
        message = error_message(error)
        _finish_anyway(run, FAILED, message)
        if run is not None and isinstance(error, MlflowException | UserError):
            # The exit status of an error during training differs from that of a wrong setting. Unlike the
            # store, the terminal may show file names.
            shown = str(error) if isinstance(error, UserError) else message
            raise TrackingError(shown, public=message) from None
        raise


def _start(tags: Mapping[str, str], run_id: str | None) -> TrackedRun:
    # For a server, the outbox's `Monitor` records them.
    wanted = wants_system_metrics() and not is_server(resolve_uri())
    seconds = heartbeat_interval()  # a wrong value is an error before there is a run
    try:
        if run_id is not None:  # a RUNNING run must not have the heartbeat of the earlier process
            for name, value in heartbeat_tag().items():
                mlflow_client().set_tag(run_id, name, value)
        made = take_project_run() if run_id is None else None
        active = mlflow.start_run(run_id or made, tags={**tags, **heartbeat_tag()}, log_system_metrics=wanted)
        if run_id is not None and ERROR in active.data.tags:
            mlflow.delete_tag(ERROR)
    except MlflowException as error:
        raise StoreError(f"{shown_uri()}: no run can be started: {reason(error)}") from None
    if not active.info.run_id:
        raise StoreError(
            f"{shown_uri()}: no run can be started: is it the tracking server that answers there?"
        )
    run = TrackedRun(active.info.run_id, is_resumed=run_id is not None)
    run.start_heartbeat(seconds)
    return run


def _finish_anyway(run: TrackedRun | None, status: str, message: str) -> None:
    """End a failed run; an error of the store must not hide the first error."""
    try:
        if run is None and (active := mlflow.active_run()) is not None:
            run = TrackedRun(active.info.run_id)
        if run is None:
            return
        run.finish(status, message)
    except UndeliveredError as error:
        warn(str(error))
    except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
        warn(
            f"the run could not be marked {status}: {reason(error)}; once the store can be written, "
            f"{command('store doctor --apply')} marks it KILLED"
        )
