"""Brings what was recorded to a run: however often an item is sent, the run has it once."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .held import MAX_TAG, AnswerError, Held, has_model_files
from .journal import ARTIFACT, DATASETS, METRICS, MODEL, PARAMS, STATUS, TAGS, Item
from .logged_model import deliver_model

COMPARISON = "comparison"
"""The kind of an item that is never in a journal: a look at what the server holds."""

ROUNDS = 3
"""How often what a comparison finds missing is sent again."""

_RANKS = {PARAMS: 0, DATASETS: 0, METRICS: 0, TAGS: 0, ARTIFACT: 2, MODEL: 3, COMPARISON: 4, STATUS: 5}
_FEW = 5
_TEMPORARY = {408, 429, 502, 503, 504}
_NO_JSON = "the response body was not in a valid JSON format"

T = TypeVar("T")


class Delivery:
    """Sends items to one run."""

    def __init__(self, run_id: str, folder: Path) -> None:
        """Prepares, and asks the store nothing.

        Args:
            run_id: The run.
            folder: Where the paths of items start.
        """
        import mlflow

        self._client = mlflow.MlflowClient()
        self._run_id = run_id
        self._folder = folder
        self._held: Held | None = None
        self._added: set[tuple[str, int]] = set()
        self._seen: Held | None = None  # by a comparison that was cut short

    def send(self, item: Item) -> None:
        """Sends one item; whatever the store raises comes through."""
        content = item.content
        if item.is_result:
            self._seen = None
        if item.kind == METRICS:
            self._send_metrics(content, is_doubtful=item.is_doubtful)
        elif item.kind == TAGS:
            self._send_tags(content)
        elif item.kind == PARAMS:
            self._send_params(content)
        elif item.kind == DATASETS:
            self._send_datasets(content["inputs"])
        elif item.kind == ARTIFACT:
            path = self._folder / str(item.number) / content["name"]
            self._client.log_artifact(self._run_id, str(path), content["folder"] or None)
        elif item.kind == MODEL:
            self._send_model(self._folder / str(item.number) / content["name"], content["step"])
        elif item.kind == STATUS:
            self._client.set_terminated(self._run_id, content["status"], content["end_time"])

    def lacks(self, items: Sequence[Item]) -> list[Item]:
        """Return those of the items, which were sent, that the store does not hold.

        A few requests; called again after an error, it goes on where it was.
        """
        self._held = None  # what was thought to be there may not be
        self._seen = self._seen or Held(self._client, self._run_id)
        lacking = self._seen.lacks(items, self._folder)
        self._seen = None
        return lacking

    def _send_tags(self, tags: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            self._run_id, tags=[RunTag(key, str(value)[:MAX_TAG]) for key, value in tags.items()]
        )

    def _send_params(self, params: dict[str, Any]) -> None:
        """A param never changes, and ``mlflow run`` has logged some by itself."""
        from mlflow.entities import Param

        there = Held(self._client, self._run_id).params
        new = [Param(key, value) for key, value in params.items() if key not in there]
        self._client.log_batch(self._run_id, params=new)

    def _send_datasets(self, inputs: list[dict[str, Any]]) -> None:
        """A store keeps two inputs of the same name and digest once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(**one["dataset"]), [InputTag(key, value) for key, value in one["tags"].items()]
            )
            for one in inputs
        ]
        self._client.log_inputs(self._run_id, datasets=datasets)

    def _send_model(self, folder: Path, step: int) -> None:
        model_id = deliver_model(self._client, self._run_id, folder, step)
        if not has_model_files(self._client, model_id, folder):  # of one that is READY it sends no files
            self._client.log_model_artifacts(model_id, str(folder))

    def _send_metrics(self, content: dict[str, Any], *, is_doubtful: bool) -> None:
        """Points can be neither deleted nor overwritten: after any doubt only missing ones are sent."""
        from mlflow.entities import Metric

        step, values = content["step"], content["values"]
        if is_doubtful:
            values = {key: value for key, value in values.items() if not self._has_point(key, step)}
        points = [Metric(key, value, content["timestamp"], step) for key, value in values.items()]
        try:
            self._client.log_batch(self._run_id, points)
        except Exception:
            self._held = None  # who knows what arrived
            raise
        if self._held is not None:
            self._added |= {(key, step) for key in values}

    def _has_point(self, key: str, step: int) -> bool:
        if self._held is None:
            self._held, self._added = Held(self._client, self._run_id), set()
        return (key, step) in self._added or self._held.has_point(key, step)


def in_order(item: Item) -> tuple[int, int]:
    """Sorts items as they are delivered."""
    # That it ended otherwise is true whatever arrives; FINISHED says that everything has.
    rank = 1 if item.kind == STATUS and not is_finished(item) else _RANKS[item.kind]
    return rank, item.number


def is_finished(item: Item) -> bool:
    """Return whether an item says that the run came to its true end."""
    return item.kind == STATUS and item.content["status"] == "FINISHED"


def insist(call: Callable[[], T], patience: float) -> T:
    """Call until the server answers, for at most ``patience`` seconds; what it raises then comes through."""
    started = time.monotonic()
    while True:
        try:
            return call()
        except Exception as error:  # whatever the store raises
            if allowed_attempts(error) is not None or time.monotonic() - started > patience:
                raise
            time.sleep(0.5)


def allowed_attempts(error: Exception) -> int | None:
    """How often an item may fail in this way; None for as often as it takes, for the server is not there.

    An answer that refuses the item is the same each time. What is neither, such as an internal
    error of the server, may pass, and must not keep everything behind it back for ever.
    """
    if isinstance(error, AnswerError) or _NO_JSON in str(error):  # a login page, say
        return None
    status = _http_status(error)
    if status is None:
        is_local = isinstance(error, FileNotFoundError | PermissionError)
        return 1 if is_local else None if _is_connection_error(error) else _FEW
    if status in _TEMPORARY:
        return None
    return 1 if 400 <= status < 500 else _FEW


def is_answer(error: Exception) -> bool:
    """Whether the server is there and said something."""
    return _NO_JSON not in str(error) and _http_status(error) is not None


def _http_status(error: Exception) -> int | None:
    """The HTTP status that the server answered with, None where there was no answer."""
    from mlflow import MlflowException

    response = getattr(error, "response", None)
    if response is not None and hasattr(response, "status_code"):
        return int(response.status_code)
    if isinstance(error, MlflowException):
        # MLflow's client says it in words where it has tried again by itself.
        if (found := re.search(r"too many (\d{3}) error responses", str(error))) is not None:
            return int(found[1])
        return None if _is_unanswered(error) else int(error.get_http_status_code())
    return None


def _is_unanswered(error: Exception) -> bool:
    return re.match(r"API request to \S+ failed with (timeout )?exception", str(error)) is not None


def _is_connection_error(error: Exception) -> bool:
    # requests' errors are OSErrors, as are those of sockets; MLflow wraps most of them.
    return isinstance(error, OSError) or _is_unanswered(error)
