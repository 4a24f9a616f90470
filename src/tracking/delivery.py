"""Delivery of recorded items to a run, and the comparison with what the store holds.

However often an item is sent, the run has it once. An answer with status 200 proves nothing: a login page or
a proxy answers as well, also to what is asked here. So an answer must name the run, and a metric's history
must contain the point that the run names as its latest.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, Experiment, FileInfo, InputTag, Metric, Param, Run, RunTag

from ..errors import TrackingError
from .journal import ARTIFACT, DATASETS, METRICS, MODEL, PARAMS, STATUS, TAGS, Item, Journal
from .logged_model import deliver_model
from .names import FINISHED
from .store import MAX_TAG, mlflow_client

COMPARISON = "comparison"
"""Kind of an item that is never in a journal: a comparison with what the server holds."""

ROUNDS = 3
"""How often items that a comparison finds missing are sent again."""

_RANKS = {PARAMS: 0, DATASETS: 0, METRICS: 0, TAGS: 0, ARTIFACT: 2, MODEL: 3, COMPARISON: 4, STATUS: 5}
_FEW = 5
_TEMPORARY = {408, 429, 502, 503, 504}
_NO_JSON = "the response body was not in a valid JSON format"
_STRANGER = "something else than the tracking server answers"

T = TypeVar("T")


class AnswerError(TrackingError):
    """The answer does not come from the tracking server."""


def read_run_checked(client: MlflowClient, run_id: str) -> Run:
    """Return a run of the store.

    Raises:
        AnswerError: The answer names another run, or none.
    """
    run = client.get_run(run_id)
    if run.info.run_id != run_id:
        raise AnswerError(f"{_STRANGER}: it was asked for a run and sent none")
    return run


def read_experiment_checked(client: MlflowClient, experiment_id: str) -> Experiment:
    """Return an experiment of the store.

    Raises:
        AnswerError: The answer names another experiment, or none.
    """
    experiment = client.get_experiment(experiment_id)
    if experiment.experiment_id != experiment_id:
        raise AnswerError(f"{_STRANGER}: it was asked for an experiment and sent none")
    return experiment


class ServerState:
    """What the store holds of one run at one moment; each request is made once, and only if needed."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        """Read the run.

        Raises:
            AnswerError: The answer does not come from a tracking server.
        """
        self._client = client
        self._run = read_run_checked(client, run_id)
        # The entity holds the values only.
        self._latest = {metric.key: metric.step for metric in self._run.data.to_proto().metrics}
        self._steps: dict[str, set[int]] = {}
        self._listed: dict[str, dict[str, int | None]] = {}

    def has_point(self, key: str, step: int) -> bool:
        """Return whether a metric has a value at a step.

        Raises:
            AnswerError: The history lacks the latest point that the run itself has.
        """
        latest = self._latest.get(key)
        if latest is None or latest == step:
            return latest == step
        if key not in self._steps:
            points = self._client.get_metric_history(self._run.info.run_id, key)
            self._steps[key] = {point.step for point in points}
            if latest not in self._steps[key]:
                raise AnswerError(f"{_STRANGER}: it was asked for the history of {key} and sent none")
        return step in self._steps[key]

    def lacks(self, items: Sequence[Item], folder: Path) -> list[Item]:
        """Return the items that are missing from the store.

        Args:
            items: What was sent; of two that set the same tag or write the same file, the later one counts.
            folder: The folder of the items' files, each in a subfolder with its number.
        """
        tags = {key: value for item in items if item.kind == TAGS for key, value in item.content.items()}
        last = {item.target: item.number for item in sorted(items, key=lambda item: item.number)}
        newest = (i for i in items if i.kind != ARTIFACT or last[i.target] == i.number)
        return [item for item in newest if not self._has(item, tags, folder / str(item.number))]

    def _has(self, item: Item, tags: dict[str, Any], folder: Path) -> bool:
        content, run = item.content, self._run
        if item.kind == METRICS:
            return all(self.has_point(key, content["step"]) for key in content["values"])
        if item.kind == TAGS:
            return all(run.data.tags.get(key) == str(tags[key])[:MAX_TAG] for key in content)
        if item.kind == PARAMS:
            return content.keys() <= run.data.params.keys()
        if item.kind == DATASETS:
            held = {one.dataset.name for one in run.inputs.dataset_inputs} if run.inputs else set()
            return {one["dataset"]["name"] for one in content["inputs"]} <= held
        if item.kind == ARTIFACT:
            return self._has_file(content["folder"], folder / content["name"])
        return item.kind == MODEL and self._has_model(content["step"], folder / content["name"])

    def _has_file(self, below: str, path: Path) -> bool:
        if below not in self._listed:
            self._listed[below] = _sizes(self._client.list_artifacts(self._run.info.run_id, below or None))
        name = f"{below}/{path.name}" if below else path.name
        return _has_all(self._listed[below], {name: path.stat().st_size})

    def _has_model(self, step: int, folder: Path) -> bool:
        outputs = self._run.outputs.model_outputs if self._run.outputs else []
        ids = [output.model_id for output in outputs if output.step == step]
        return any(
            self._client.get_logged_model(model_id).status == "READY"
            and _has_model_files(self._client, model_id, folder)
            for model_id in ids
        )


def _has_model_files(client: MlflowClient, model_id: str, folder: Path) -> bool:
    """Return whether a logged model has all files of a folder, by name and size."""
    here: dict[str, int] = {}
    held: dict[str, int | None] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        here[path.relative_to(folder).as_posix()] = path.stat().st_size
    for below in sorted({str(Path(name).parent).strip(".") for name in here}):
        held |= _sizes(client.list_logged_model_artifacts(model_id, below or None))
    return _has_all(held, here)


def _sizes(entries: Iterable[FileInfo]) -> dict[str, int | None]:
    """Return the size of each file in a listing; None if the store does not say."""
    return {entry.path: entry.file_size for entry in entries if not entry.is_dir}


def _has_all(held: Mapping[str, int | None], here: Mapping[str, int]) -> bool:
    """Return whether the store has all files, with the same size if it is known."""
    return all(name in held and held[name] in (None, size) for name, size in here.items())


class Delivery:
    """Sends items to one run."""

    def __init__(self, run_id: str, folder: Path) -> None:
        """Prepare the delivery, without a request to the store.

        Args:
            run_id: The run.
            folder: The folder of the items' files.
        """
        self._client = mlflow_client()
        self._run_id = run_id
        self._folder = folder
        self._state: ServerState | None = None
        self._added: set[tuple[str, int]] = set()
        self._compared: ServerState | None = None  # of a comparison that was interrupted

    def send(self, item: Item) -> None:
        """Send one item; all errors of the store pass through."""
        content, folder = item.content, self._folder / str(item.number)
        if item.is_result:
            self._compared = None
        if item.kind == METRICS:
            self._send_metrics(content, is_doubtful=item.is_doubtful)
        elif item.kind == TAGS:
            tags = [RunTag(key, str(value)[:MAX_TAG]) for key, value in content.items()]
            self._client.log_batch(self._run_id, tags=tags)
        elif item.kind == PARAMS:  # a param cannot change, and ``mlflow run`` has logged some by itself
            held = read_run_checked(self._client, self._run_id).data.params
            new = [Param(key, value) for key, value in content.items() if key not in held]
            self._client.log_batch(self._run_id, params=new)
        elif item.kind == DATASETS:  # a store keeps inputs of the same name and digest once
            inputs = [
                DatasetInput(Dataset(**one["dataset"]), [InputTag(*tag) for tag in one["tags"].items()])
                for one in content["inputs"]
            ]
            self._client.log_inputs(self._run_id, datasets=inputs)
        elif item.kind == ARTIFACT:
            self._client.log_artifact(self._run_id, str(folder / content["name"]), content["folder"] or None)
        elif item.kind == MODEL:
            self._send_model(folder / content["name"], content["step"])
        elif item.kind == STATUS:
            self._client.set_terminated(self._run_id, content["status"], content["end_time"])

    def lacks(self, items: Sequence[Item]) -> list[Item]:
        """Return the sent items that are missing from the store.

        After an error, a second call continues where the first one stopped.
        """
        self._state = None  # it may be wrong
        self._compared = self._compared or ServerState(self._client, self._run_id)
        lacking = self._compared.lacks(items, self._folder)
        self._compared = None
        return lacking

    def _send_model(self, folder: Path, step: int) -> None:
        model_id = deliver_model(self._client, self._run_id, folder, step)
        if not _has_model_files(self._client, model_id, folder):  # `deliver_model` sends none if it is READY
            self._client.log_model_artifacts(model_id, str(folder))

    def _send_metrics(self, content: dict[str, Any], *, is_doubtful: bool) -> None:
        """Send points, which cannot be deleted or overwritten: in doubt, only the missing ones."""
        step, values = content["step"], content["values"]
        if is_doubtful:
            values = {key: value for key, value in values.items() if not self._has_point(key, step)}
        points = [Metric(key, value, content["timestamp"], step) for key, value in values.items()]
        try:
            self._client.log_batch(self._run_id, points)
        except Exception:
            self._state = None  # some of them may have arrived
            raise
        if self._state is not None:
            self._added |= {(key, step) for key in values}

    def _has_point(self, key: str, step: int) -> bool:
        if self._state is None:
            self._state, self._added = ServerState(self._client, self._run_id), set()
        return (key, step) in self._added or self._state.has_point(key, step)


def record_comparison(journal: Journal, sent: list[Item], lacking: list[Item]) -> None:
    """Record what a comparison has found: what the server lacks is sent again, the rest is done."""
    for item in sent:
        if item in lacking:
            item.is_sent, item.is_doubtful = False, True
        else:
            journal.done(item)


def delivery_order(item: Item) -> tuple[int, int]:
    """Return the sort key of an item: small items, files, the model, and the status FINISHED last."""
    # Another status is always true; FINISHED says that everything has arrived.
    rank = 1 if item.kind == STATUS and not is_finished(item) else _RANKS[item.kind]
    return rank, item.number


def is_finished(item: Item) -> bool:
    """Return whether an item sets the status FINISHED."""
    return item.kind == STATUS and item.content["status"] == FINISHED


def retry_while_unreachable(call: Callable[[], T], patience: float) -> T:
    """Call until the server answers, for at most ``patience`` seconds; then its error passes through."""
    started = time.monotonic()
    while True:
        try:
            return call()
        except Exception as error:  # MLflow's stores raise errors of SQLAlchemy, requests and their own
            if allowed_attempts(error) is not None or time.monotonic() - started > patience:
                raise
            time.sleep(0.5)


def allowed_attempts(error: Exception) -> int | None:
    """Return how often an item may fail with this error; None for any number if the server is unreachable.

    An answer that refuses the item will not change. Any other error, such as an internal error of the
    server, may pass, and must not hold back everything else forever.
    """
    if isinstance(error, AnswerError) or _NO_JSON in str(error):  # such as a login page
        return None
    status = _http_status(error)
    if status is None:
        is_local = isinstance(error, FileNotFoundError | PermissionError)
        # The errors of requests and of sockets are OSErrors; MLflow wraps most of them.
        is_connection = isinstance(error, OSError) or _is_unanswered(error)
        return 1 if is_local else None if is_connection else _FEW
    if status in _TEMPORARY:
        return None
    return 1 if 400 <= status < 500 else _FEW


def is_answer(error: Exception) -> bool:
    """Return whether the server was reached and answered."""
    return _NO_JSON not in str(error) and _http_status(error) is not None


def _http_status(error: Exception) -> int | None:
    """Return the HTTP status of the server's answer, None if there was no answer."""
    response = getattr(error, "response", None)
    if response is not None and hasattr(response, "status_code"):
        return int(response.status_code)
    if isinstance(error, MlflowException):
        # After its own retries, MLflow's client has the status only in the message.
        if (found := re.search(r"too many (\d{3}) error responses", str(error))) is not None:
            return int(found[1])
        return None if _is_unanswered(error) else int(error.get_http_status_code())
    return None


def _is_unanswered(error: Exception) -> bool:
    return re.match(r"API request to \S+ failed with (timeout )?exception", str(error)) is not None
