"""What a store holds of a run, to compare it with what was sent: an answer of 200 proves nothing.

A login page or a proxy answers as well, also to what is asked here. So an answer must name the run, and a
history must hold the point that the run names as its latest.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TrackingError
from .journal import ARTIFACT, DATASETS, METRICS, MODEL, PARAMS, TAGS, Item

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, FileInfo, Run

MAX_TAG = 5000  # MLflow refuses longer tag values
_STRANGER = "something else than the tracking server answers"


class AnswerError(TrackingError):
    """What answered is not the tracking server."""


def read_whole_run(client: "MlflowClient", run_id: str) -> "Run":
    """Return a run of the store.

    Raises:
        AnswerError: The answer names another run, or none.
    """
    run = client.get_run(run_id)
    if run.info.run_id != run_id:
        raise AnswerError(f"{_STRANGER}: it was asked for a run and sent none")
    return run


def read_experiment(client: "MlflowClient", experiment_id: str) -> "Experiment":
    """Return an experiment of the store.

    Raises:
        AnswerError: The answer names another experiment, or none.
    """
    experiment = client.get_experiment(experiment_id)
    if experiment.experiment_id != experiment_id:
        raise AnswerError(f"{_STRANGER}: it was asked for an experiment and sent none")
    return experiment


class Held:
    """What the store holds of one run at one moment; each thing is asked for once, and only if needed."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        """Ask for the run.

        Raises:
            AnswerError: The answer is not that of a tracking server.
        """
        self._client = client
        self._run = read_whole_run(client, run_id)
        # The entity shows the values only.
        self._latest = {metric.key: metric.step for metric in self._run.data.to_proto().metrics}
        self._steps: dict[str, set[int]] = {}
        self._listed: dict[str, dict[str, int | None]] = {}

    @property
    def params(self) -> set[str]:
        """Return the names of the run's params."""
        return set(self._run.data.params)

    def has_point(self, key: str, step: int) -> bool:
        """Return whether a metric has a value at a step.

        Raises:
            AnswerError: The history lacks what the run itself has.
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
        """Return those of the items that the store does not hold.

        Args:
            items: What was sent; of two that set the same tag or write the same file, the later one counts.
            folder: Where the files of items lie, each in the folder of its number.
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
            return set(content) <= self.params
        if item.kind == DATASETS:
            there = {one.dataset.name for one in run.inputs.dataset_inputs} if run.inputs else set()
            return {one["dataset"]["name"] for one in content["inputs"]} <= there
        if item.kind == ARTIFACT:
            return self._has_file(content["folder"], folder / content["name"])
        return item.kind == MODEL and self._has_model(content["step"], folder / content["name"])

    def _has_file(self, there: str, path: Path) -> bool:
        if there not in self._listed:
            self._listed[there] = sizes(self._client.list_artifacts(self._run.info.run_id, there or None))
        name = f"{there}/{path.name}" if there else path.name
        return is_same(self._listed[there], {name: path.stat().st_size})

    def _has_model(self, step: int, folder: Path) -> bool:
        outputs = self._run.outputs.model_outputs if self._run.outputs else []
        ids = [output.model_id for output in outputs if output.step == step]
        return any(
            self._client.get_logged_model(model_id).status == "READY"
            and has_model_files(self._client, model_id, folder)
            for model_id in ids
        )


def has_model_files(client: "MlflowClient", model_id: str, folder: Path) -> bool:
    """Return whether a logged model has all files of a folder, by name and size."""
    here: dict[str, int] = {}
    there: dict[str, int | None] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        here[path.relative_to(folder).as_posix()] = path.stat().st_size
    for below in sorted({str(Path(name).parent).strip(".") for name in here}):
        there |= sizes(client.list_logged_model_artifacts(model_id, below or None))
    return is_same(there, here)


def sizes(entries: "Iterable[FileInfo]") -> dict[str, int | None]:
    """Return the size of each file in a listing; None if the store does not say."""
    return {entry.path: entry.file_size for entry in entries if not entry.is_dir}


def is_same(there: Mapping[str, int | None], here: Mapping[str, int]) -> bool:
    """Return whether all files here are there, with the same size where that is known."""
    return all(name in there and there[name] in (None, size) for name, size in here.items())
