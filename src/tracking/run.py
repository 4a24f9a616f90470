"""One MLflow run from start to its true end."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MlprojectError, StoreError, TrackingError, UserError
from ..utils.cli import warn
from ..utils.io import atomic_link, remove_temps
from ..utils.runtime import Stopped
from .delivery import Delivery, insist
from .heartbeat import Heartbeat, beat, seconds_between
from .held import read_whole_run
from .interrupted import clear_error
from .journal import DATASETS, METRICS, PARAMS, TAGS, Item
from .logged_model import log_model, save_model
from .names import ERROR
from .outbox import Outbox, UndeliveredError, read_patience
from .store import (
    http_retries,
    is_server,
    local_folder,
    quiet_client,
    reason,
    resolve_uri,
    shown_uri,
)
from .system_metrics import Monitor, wants_system_metrics

if TYPE_CHECKING:
    from torch import nn

    from ..data.dataset import Dataset

_CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}


class TrackedRun:
    """The record of one run in MLflow; satisfies the trainer's `Tracker`.

    A local store takes everything at once. What goes to a server waits in an `Outbox`, so that
    training neither waits for it nor ends when it goes away.
    """

    def __init__(self, run_id: str, *, is_resumed: bool = False) -> None:
        """Wraps the active run ``run_id``.

        Args:
            run_id: Its id.
            is_resumed: Whether it goes on, so that metrics may be there already.
        """
        import mlflow

        self._client = client = mlflow.MlflowClient()
        self._delivery = Delivery(run_id, Path())
        self._outbox: Outbox | None = None
        self._monitor: Monitor | None = None
        self._heartbeat: Heartbeat | None = None
        self._results: Path | None = None
        self.run_id = run_id
        self.is_resumed = is_resumed
        run = insist(lambda: read_whole_run(client, run_id), read_patience())
        self.info = run.info
        self._model_steps = {o.step for o in run.outputs.model_outputs} if run.outputs else set[int]()

    def beat_every(self, seconds: float) -> None:
        """Until the end a tag tells that often that this process works on the run."""
        self._heartbeat = Heartbeat(self.log_tags, seconds)

    def keep_in(self, results: Path) -> None:
        """From here on what a server has not confirmed is kept in ``results``, and training goes on."""
        self._results = results
        artifacts = local_folder(self.info.artifact_uri)
        if self.is_resumed and artifacts is not None:
            remove_temps(artifacts)
        if is_server(resolve_uri()):
            self._outbox = Outbox(results, self.run_id)
            if wants_system_metrics():
                monitor = partial(Monitor, self.run_id, self.log_metrics)
                self._monitor = insist(monitor, read_patience())

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags, replacing those of the same name."""
        self._send(TAGS, {key: str(value) for key, value in tags.items()})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Records settings that the run does not hold yet; ``mlflow run`` has logged some by itself."""
        self._send(PARAMS, {key: str(value) for key, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records all metrics in one call."""
        now = int(time.time() * 1000)
        self._send(METRICS, {"step": step, "timestamp": now, "values": dict(metrics)})

    def _send(self, kind: str, content: dict[str, Any]) -> None:
        if self._outbox is None:
            self._delivery.send(Item(0, kind, content, is_doubtful=self.is_resumed))
        else:
            self._outbox.put(kind, content, is_doubtful=self.is_resumed)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keeps a file with the run: a hard link where the store is on the same file system, else a copy.

        ``path`` must be a file that is only ever replaced, never written in place.
        """
        local = local_folder(self.info.artifact_uri)
        if local is not None:
            atomic_link(path, local / (folder or "") / path.name)
        elif self._outbox is not None:
            self._outbox.put_file(path, folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def has_model(self, step: int) -> bool:
        """Whether the run had a logged model of this epoch when it was started or resumed."""
        return step in self._model_steps

    def log_model(self, module: "nn.Module", *, step: int, **options: Any) -> None:  # noqa: ANN401
        """Keeps a model with the run; the options are those of `src.tracking.logged_model.save_model`."""

        def save(folder: Path) -> None:
            save_model(module, folder, **options)

        if self._outbox is None:
            log_model(self._client, self.run_id, save, step, self._results)
        else:
            self._outbox.put_model(save, step)

    def log_dataset(self, dataset: "Dataset", name: str) -> None:
        """Records which data went in, one input per split."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        with warnings.catch_warnings():
            # It registers one class of source twice and warns that it must choose.
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(str(dataset.root))
        inputs = []
        for split, samples in dataset.splits.items():
            meta: Any = MetaDataset(source, name=f"{name}-{split}", digest=dataset.fingerprint[:36])  # type: ignore[abstract]
            tags = {MLFLOW_DATASET_CONTEXT: _CONTEXTS[split], "images": str(len(samples))}
            inputs.append({"dataset": meta.to_dict(), "tags": tags})
        self._send(DATASETS, {"inputs": inputs})

    def link_model(self, source: str) -> None:
        """Says that a logged model, ``models:/m-...``, went in."""
        from mlflow.entities import LoggedModelInput

        self._client.log_inputs(self.run_id, models=[LoggedModelInput(source.removeprefix("models:/"))])

    def rename(self, name: str) -> None:
        """Gives the run a name that says what it is."""
        self.log_tags({"mlflow.runName": name})

    def finish(self, status: str, message: str | None = None) -> None:
        """Ends the run; a message goes with it as a tag.

        Raises:
            UndeliveredError: A server did not take everything; what is missing is in its journal.
        """
        try:
            if self._outbox is None:
                self._end(status, message)
            else:
                self._end_delivered(self._outbox, status, message)
            if status == "FINISHED":
                clear_error(self.run_id)
        finally:
            # Not before: the last delivery to a server can take long.
            if self._heartbeat is not None:
                self._heartbeat.stop()
            _forget_active_run(self.run_id)

    def _end(self, status: str, message: str | None) -> None:
        import mlflow

        if message is not None:
            self.log_tags({ERROR: message})
        # First the fact, then MLflow's own book-keeping, which a second signal may cut short.
        self._client.set_terminated(self.run_id, status)
        mlflow.end_run(status)

    def _end_delivered(self, outbox: Outbox, status: str, message: str | None) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        if message is not None and not outbox.has_status:
            with contextlib.suppress(OSError):  # a full disk may be what is wrong; the status counts more
                self.log_tags({ERROR: message})
        outbox.put_status(status)
        outbox.close(status)


def _forget_active_run(run_id: str) -> None:
    """Takes the run from MLflow, which would mark any that it holds FINISHED when the process ends."""
    from mlflow.tracking import fluent

    runs = fluent._active_run_stack.get()
    runs[:] = [run for run in runs if run.info.run_id != run_id]
    monitor = fluent.run_id_to_system_metrics_monitor.pop(run_id, None)
    if monitor is not None:
        monitor._shutdown_event.set()  # its own end would wait for the store


@contextmanager
def tracked_run(tags: Mapping[str, str], run_id: str | None = None) -> Iterator[TrackedRun]:
    """Starts a run, or takes the one that ``mlflow run`` has made for this process.

    Args:
        tags: The run's tags.
        run_id: A run to go on with, in status RUNNING again; None starts one.

    The run ends FINISHED when the block ends, KILLED when a signal ended it, and FAILED on any
    error, with the message as the tag ``error``.

    Raises:
        StoreError: No run can be started.
        TrackingError: The store failed while the run was under way, or did not get all of it.
    """
    # Every further attempt is the outbox's: it knows what must not be sent twice.
    with http_retries(0), quiet_client():
        yield from _tracked(tags, run_id)


def _tracked(tags: Mapping[str, str], run_id: str | None) -> Iterator[TrackedRun]:
    from mlflow import MlflowException

    run: TrackedRun | None = None
    try:
        run = _start(tags, run_id)
        yield run
        run.finish("FINISHED")
    except UndeliveredError:
        raise
    except Stopped as stopped:
        _finish_anyway(run, "KILLED", str(stopped))
        raise
    except BaseException as error:
        message = message_of(error)
        _finish_anyway(run, "FAILED", message)
        if run is not None and isinstance(error, MlflowException | UserError):
            # Whatever it is, it is no longer something to mend before training.
            shown = str(error) if isinstance(error, UserError) else message  # the terminal may name files
            raise TrackingError(shown, public=message) from None
        raise


def _start(tags: Mapping[str, str], run_id: str | None) -> TrackedRun:
    import mlflow

    # At a server the outbox's monitor does this: MLflow's own ends at the first request that fails.
    from .project_run import take_project_run

    wanted = wants_system_metrics() and not is_server(resolve_uri())
    seconds = seconds_between()  # a wrong one is told before there is a run
    try:
        if run_id is not None:  # RUNNING again it must not have the heartbeat of the process before
            for name, value in beat().items():
                mlflow.MlflowClient().set_tag(run_id, name, value)
        made = take_project_run() if run_id is None else None
        active = mlflow.start_run(run_id or made, tags={**tags, **beat()}, log_system_metrics=wanted)
        if run_id is not None and ERROR in active.data.tags:
            mlflow.delete_tag(ERROR)
    except mlflow.MlflowException as error:
        raise StoreError(f"{shown_uri()}: no run can be started: {reason(error)}") from None
    if not active.info.run_id:
        raise StoreError(
            f"{shown_uri()}: no run can be started: is it the tracking server that answers there?"
        )
    run = TrackedRun(active.info.run_id, is_resumed=run_id is not None)
    run.beat_every(seconds)
    return run


def message_of(error: BaseException) -> str:
    """Why a run ended, in words that the store may keep."""
    from mlflow import MlflowException

    if isinstance(error, MlflowException):
        return f"the tracking store {shown_uri()} failed: {reason(error)}; what is on disk is whole"
    if isinstance(error, MlprojectError):
        return error.public
    return str(error) if isinstance(error, Stopped) else f"{type(error).__name__}: {error}"


def _finish_anyway(run: TrackedRun | None, status: str, message: str) -> None:
    """Ends a run that goes wrong; a store that is gone as well must not hide what went wrong first."""
    import mlflow

    try:
        if run is None and (active := mlflow.active_run()) is not None:
            run = TrackedRun(active.info.run_id)
        if run is None:
            return
        run.finish(status, message)
    except UndeliveredError as error:
        warn(str(error))
    except Exception as error:  # whatever the store raises
        warn(
            f"the run could not be marked {status}: {reason(error)}; once the store can be written, "
            "python -m src.store doctor --apply marks it KILLED"
        )
