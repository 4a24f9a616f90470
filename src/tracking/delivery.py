"""Brings what was recorded to a run: however often an item is sent, the run has it once."""

import re
from pathlib import Path
from typing import Any

from src.tracking.journal import ARTIFACT, METRICS, MODEL, STATUS, TAGS, Item
from src.tracking.logged_model import deliver_model

_FEW = 5
_TEMPORARY = {408, 429, 502, 503, 504}
MAX_TAG = 5000  # MLflow refuses longer tag values


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
        self._steps: dict[str, set[int]] = {}

    def send(self, item: Item) -> None:
        """Sends one item; whatever the store raises comes through."""
        content = item.content
        if item.kind == METRICS:
            self._send_metrics(content, is_doubtful=item.is_doubtful)
        elif item.kind == TAGS:
            self._send_tags(content)
        elif item.kind == ARTIFACT:
            path = self._folder / str(item.number) / content["name"]
            self._client.log_artifact(self._run_id, str(path), content["folder"] or None)
        elif item.kind == MODEL:
            folder = self._folder / str(item.number) / content["name"]
            deliver_model(self._client, self._run_id, folder, content["step"])
        elif item.kind == STATUS:
            self._client.set_terminated(self._run_id, content["status"], content["end_time"])

    def _send_tags(self, tags: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            self._run_id, tags=[RunTag(key, str(value)[:MAX_TAG]) for key, value in tags.items()]
        )

    def _send_metrics(self, content: dict[str, Any], *, is_doubtful: bool) -> None:
        """Points can be neither deleted nor overwritten: after any doubt only missing ones are sent."""
        from mlflow.entities import Metric

        step, values = content["step"], content["values"]
        if is_doubtful:
            values = {key: value for key, value in values.items() if step not in self._steps_of(key)}
        points = [Metric(key, value, content["timestamp"], step) for key, value in values.items()]
        try:
            self._client.log_batch(self._run_id, points)
        except Exception:
            self._steps.clear()  # who knows what arrived
            raise
        for key in values:
            if key in self._steps:
                self._steps[key].add(step)

    def _steps_of(self, key: str) -> set[int]:
        """The steps of a metric that the store has."""
        if key not in self._steps:
            points = self._client.get_metric_history(self._run_id, key)
            self._steps[key] = {point.step for point in points}
        return self._steps[key]


def allowed_attempts(error: Exception) -> int | None:
    """How often an item may fail in this way; None for as often as it takes, for the server is not there.

    An answer that refuses the item is the same each time. What is neither, such as an internal
    error of the server, may pass, and must not keep everything behind it back for ever.
    """
    status = _http_status(error)
    if status is None:
        is_local = isinstance(error, FileNotFoundError | PermissionError)
        return 1 if is_local else None if _is_connection_error(error) else _FEW
    if status in _TEMPORARY:
        return None
    return 1 if 400 <= status < 500 else _FEW


def is_answer(error: Exception) -> bool:
    """Whether the server is there and said something."""
    return _http_status(error) is not None


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
