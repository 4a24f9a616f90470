"""The record of a group's best run: a config that trains again, with the results it gave."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from ..errors import ConfigError
from ..tracking.finished_run import FinishedRun
from ..utils.config import Config
from ..utils.io import sha256
from ..utils.yaml_files import parse_yaml, read_text
from .group import Group
from .history import Entry

_MAX_LENGTH = 50_000  # a replaced file is kept in the history and in a tag; MLflow's tags end at 100,000


@dataclass(frozen=True)
class Record:
    """What a group's YAML says.

    Attributes:
        text: The whole file.
        val_auc: The val AUC that a run must beat.
        updated_at: When it was written, None where it does not say.
        run_id: The run it is from, None in a hand-made file.
        version: The registered version, None in a hand-made file.
    """

    text: str
    val_auc: float
    updated_at: datetime | None
    run_id: str | None
    version: int | None

    @property
    def sha256(self) -> str:
        """Of the file."""
        return sha256(self.text.encode())


def read_record(group: Group) -> Record | None:
    """Reads a group's YAML; None where there is none.

    Raises:
        ConfigError: It is no config, records no val AUC, or belongs to another group.
    """
    path = group.record_path
    if not path.exists():
        return None
    try:
        text = read_text(path)
        return _parse(text, group)
    except ConfigError as error:
        raise ConfigError(f"{error}; it is left as it is: mend it, or move it away") from None


def _parse(text: str, group: Group) -> Record:
    path = group.record_path
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"{path}: longer than {_MAX_LENGTH:,} characters, so it is no record")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no sections")
    config = Config.from_dict(values, str(path))
    if (config.model.name, config.modality) != (group.model, group.modality):
        raise ConfigError(f"{path}: is of {config.model.name} on {config.modality}")
    best, mlflow = _section(values, "best_metrics", path), _section(values, "mlflow", path)
    val_auc = best.get("val_auc")
    if not isinstance(val_auc, int | float) or isinstance(val_auc, bool) or not 0 <= val_auc <= 1:
        raise ConfigError(f"{path}: best_metrics.val_auc is {val_auc!r}, and not a number from 0 to 1")
    version, run_id = mlflow.get("version"), mlflow.get("run_id")
    return Record(
        text,
        float(val_auc),
        _time(values.get("updated_at"), str(path)),
        None if run_id is None else str(run_id),
        int(str(version)) if str(version).isdigit() else None,
    )


def _section(values: dict[str, Any], key: str, path: object) -> dict[str, Any]:
    section = values.get(key) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {key}: a section belongs here, not {section!r}")
    return section


def _time(value: object, path: str) -> datetime | None:
    """YAML reads an unquoted time as a datetime, or as a date, and a quoted one as text."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(f"{path}: updated_at is {value!r}, and not a time in ISO 8601") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def compose_record(config: Config, run: FinishedRun, group: Group, entry: Entry) -> str:
    """The YAML text of a record; the same arguments always give the same bytes.

    Args:
        config: The run's resolved settings.
        run: The run.
        group: What it competes for.
        entry: The event that makes it champion, with its version.
    """
    metrics = {key: value for key, value in run.metrics.items() if math.isfinite(value)}
    epoch = metrics.get("best_epoch")
    best = {
        "epoch": None if epoch is None else int(epoch),
        "val_auc": metrics.get("best_val_auc"),
        "val_accuracy": metrics.get("best_val_acc"),
        "val_sensitivity": metrics.get("best_val_sensitivity"),
        "val_specificity": metrics.get("best_val_specificity"),
        "timestamp": datetime.fromtimestamp(run.best_at / 1000, UTC).isoformat(),
    }
    test = {
        "accuracy": metrics.get("test_acc"),
        "auc": metrics.get("test_auc"),
        "sensitivity": metrics.get("test_sensitivity"),
        "specificity": metrics.get("test_specificity"),
    }
    selection = {
        "val_auc_corrected": entry.val_auc_corrected,
        "chosen_among": entry.chosen_among,
        "corrected_with": entry.corrected_with,
    }
    values = config.to_dict() | {
        "best_metrics": best,
        "test_metrics": test if "test_auc" in metrics else None,
        "selection": None if entry.val_auc_corrected is None else selection,
        "updated_at": entry.time,
        "mlflow": {
            "run_id": run.run_id,
            "experiment": run.experiment,
            "registered_model": group.name,
            "version": entry.version,
        },
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
