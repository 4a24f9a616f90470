"""What was promoted, rolled back and refused, when and why: one line of JSON each."""

import json
import math
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Literal

from src.promotion.group import FOLDER, Group
from src.utils.cli import warn
from src.utils.io import atomic_write_text

PATH = FOLDER / "history.jsonl"

Action = Literal["promotion", "rollback", "restore", "refusal"]


@dataclass(frozen=True)
class Entry:
    """One event.

    Attributes:
        time: ISO 8601, UTC.
        action: ``restore`` makes YAML, registry and history agree again on a version.
        model: The group's model.
        modality: The group's modality.
        run_id: The run that it is about.
        version: The registered version that holds from now on; None for a refusal.
        previous_version: What the alias ``previous`` points to from now on.
        replaced_version: The champion until now.
        val_auc: The run's, with its interval.
        val_auc_low: Lower end.
        val_auc_high: Upper end.
        replaced_val_auc: The val AUC that was to be beaten.
        difference: Val AUC minus that of the champion on the same samples.
        p_value: Of the paired test of the difference.
        runs: How many comparable runs were ranked: the best of many looks better than it is.
        left_out: How many runs saw other data.
        data_fingerprint: Of the run.
        split_fingerprint: Of the run.
        verified: How the run's claim was checked.
        forced: Whether ``--force`` was given.
        new_data: Whether ``--new-data`` was given.
        reason: A sentence.
        replaced_text: A YAML that this project had not written, before it was replaced.
    """

    time: str
    action: Action
    model: str
    modality: str
    run_id: str | None
    reason: str
    version: int | None = None
    previous_version: int | None = None
    replaced_version: int | None = None
    val_auc: float | None = None
    val_auc_low: float | None = None
    val_auc_high: float | None = None
    replaced_val_auc: float | None = None
    difference: float | None = None
    p_value: float | None = None
    runs: int | None = None
    left_out: int | None = None
    data_fingerprint: str | None = None
    split_fingerprint: str | None = None
    verified: str | None = None
    forced: bool = False
    new_data: bool = False
    replaced_text: str | None = None

    def to_json(self) -> str:
        """One line; a number that is not finite becomes null."""
        values = asdict(self)
        return json.dumps(
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        )

    @classmethod
    def from_json(cls, line: str) -> "Entry | None":
        """Reads such a line, without keys that a later release added; None where it is none."""
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{key: value for key, value in json.loads(line).items() if key in known})
        except (ValueError, TypeError, AttributeError):
            return None


def now() -> str:
    """The time as entries have it."""
    return datetime.now(UTC).isoformat()


def read_history() -> list[Entry]:
    """All events, oldest first; lines that are damaged are named and left out."""
    entries = []
    for number, line in enumerate(_lines(), start=1):
        entry = Entry.from_json(line)
        if entry is None:
            warn(f"{PATH}, line {number}: not an event; it is left out")
        else:
            entries.append(entry)
    return entries


def last_version(entries: list[Entry], group: Group) -> int | None:
    """The version that holds after the events, None where none was promoted."""
    of_group = [e for e in entries if (e.model, e.modality) == (group.model, group.modality)]
    return next((e.version for e in reversed(of_group) if e.action != "refusal"), None)


def append(entry: Entry) -> None:
    """Adds an event, unless it is there: an interrupted promotion is finished, not told twice."""
    lines, line = _lines(), entry.to_json()
    if line not in lines:
        atomic_write_text(PATH, "".join(f"{one}\n" for one in [*lines, line]))


def _lines() -> list[str]:
    return PATH.read_text(encoding="utf-8").splitlines() if PATH.exists() else []
