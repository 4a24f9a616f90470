"""The YAML file of a group's best run: a config that trains it again, with its results."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from ..errors import ConfigError
from ..evaluation import metric_names as names
from ..tracking.stored_run import StoredRun
from ..utils.config import Config
from ..utils.config_yaml import parse_yaml, read_config_text
from ..utils.io import sha256
from .history import Event, Group

_MAX_LENGTH = 50_000  # a replaced file is stored in the history and in a tag, which MLflow limits to 100,000


@dataclass(frozen=True)
class BestHparams:
    """The content of a group's YAML file.

    Attributes:
        text: The whole file.
        val_auc: The val AUC that a run must beat.
        updated_at: When it was written, None if the file does not say.
        run_id: The run, None in a hand-made file.
        version: The registered version, None in a hand-made file.
    """

    text: str
    val_auc: float
    updated_at: datetime | None
    run_id: str | None
    version: int | None

    @property
    def sha256(self) -> str:
        """Return the hash of the file."""
        return sha256(self.text.encode())


def read_best_hparams(group: Group) -> BestHparams | None:
    """Read a group's YAML file; return None if there is none.

    Raises:
        ConfigError: It is not a config, has no val AUC, or belongs to another group.
    """
    if not group.yaml_path.exists():
        return None
    try:
        return _parse(read_config_text(group.yaml_path), group)
    except ConfigError as error:
        raise ConfigError(f"{error}; it is left as it is: repair it, or move it away") from None


def _parse(text: str, group: Group) -> BestHparams:
    path = group.yaml_path
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"{path}: longer than {_MAX_LENGTH:,} characters, so it is not from a promotion")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no sections")
    config = Config.from_dict(values, str(path))
    if (config.model.name, config.modality) != (group.model, group.modality):
        raise ConfigError(f"{path}: is of {config.model.name} on {config.modality}")
    best, mlflow = _section(values, "best_metrics", path), _section(values, "mlflow", path)
    val_auc = best.get(names.VAL_AUC)
    if not isinstance(val_auc, int | float) or isinstance(val_auc, bool) or not 0 <= val_auc <= 1:
        raise ConfigError(f"{path}: best_metrics.val_auc is {val_auc!r}, and not a number from 0 to 1")
    version, run_id = mlflow.get("version"), mlflow.get("run_id")
    return BestHparams(
        text,
        float(val_auc),
        _time(values.get("updated_at"), str(path)),
        None if run_id is None else str(run_id),
        int(str(version)) if str(version).isdigit() else None,
    )


def _section(values: dict[str, Any], key: str, path: object) -> dict[str, Any]:
    section = values.get(key) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {key}: expected a section, not {section!r}")
    return section


def _time(value: object, path: str) -> datetime | None:
    """Parse a time, which YAML reads as a datetime or date if unquoted, and as text if quoted."""
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(f"{path}: updated_at is {value!r}, and not a time in ISO 8601") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def compose_yaml(config: Config, run: StoredRun, event: Event) -> str:
    """Return the text of the YAML file; the same arguments always give the same bytes.

    Args:
        config: The run's resolved settings.
        run: The run.
        event: The event that makes the run champion, with its version.
    """
    metrics = {key: value for key, value in run.metrics.items() if math.isfinite(value)}
    epoch = metrics.get(names.BEST_EPOCH)
    best = {
        "epoch": None if epoch is None else int(epoch),
        names.VAL_AUC: metrics.get(names.BEST_VAL_AUC),
        "val_accuracy": metrics.get(names.BEST_VAL_ACC),
        names.VAL_SENSITIVITY: metrics.get(names.BEST_VAL_SENSITIVITY),
        names.VAL_SPECIFICITY: metrics.get(names.BEST_VAL_SPECIFICITY),
        "timestamp": datetime.fromtimestamp(run.best_at / 1000, UTC).isoformat(),
    }
    test = {
        "accuracy": metrics.get(names.TEST_ACC),
        "auc": metrics.get(names.TEST_AUC),
        "sensitivity": metrics.get(names.TEST_SENSITIVITY),
        "specificity": metrics.get(names.TEST_SPECIFICITY),
    }
    selection = {
        "val_auc_corrected": event.val_auc_corrected,
        "chosen_among": event.chosen_among,
        "corrected_with": event.corrected_with,
    }
    values = config.to_dict() | {
        "best_metrics": best,
        "test_metrics": test if names.TEST_AUC in metrics else None,
        "selection": None if event.val_auc_corrected is None else selection,
        "updated_at": event.time,
        "mlflow": {
            "run_id": run.run_id,
            "experiment": run.experiment,
            "registered_model": event.group.name,
            "version": event.version,
        },
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
