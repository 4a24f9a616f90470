"""Groups of runs, and the history of their promotions, rollbacks and refusals: one line of JSON per event."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from ..errors import UserError
from ..tracking.names import registered_model_name
from ..tracking.stored_run import StoredRun
from ..utils.cli import warn
from ..utils.config_fields import TAG_PATTERN
from ..utils.io import atomic_write_bytes
from ..utils.project import in_project

Action = Literal["promotion", "rollback", "restore", "refusal"]


def best_hparams_folder() -> Path:
    """Return the folder of the YAML files and the history."""
    return in_project("config/best_hparams")


def _path() -> Path:
    return best_hparams_folder() / "history.jsonl"


@dataclass(frozen=True, order=True)
class Group:
    """The runs of one model on one modality, which compete for one registered model."""

    model: str
    modality: str

    @property
    def name(self) -> str:
        """Return the name of the registered model, which is also the YAML file's name."""
        return registered_model_name(self.model, self.modality)

    @property
    def yaml_path(self) -> Path:
        """Return the path of the group's YAML file."""
        return best_hparams_folder() / f"{self.name}.yaml"

    def check_name(self) -> None:
        """Refuse tags that cannot be part of the name of a file and a registered model.

        Raises:
            UserError: They contain a separator, a space or ``..``.
        """
        plain = re.fullmatch(TAG_PATTERN, self.model) and all(
            re.fullmatch(TAG_PATTERN, part) for part in self.modality.split("+")
        )
        if not plain or ".." in self.name:
            raise UserError(
                f"model {self.model!r} on modality {self.modality!r} would name a file and a model: "
                "letters, digits, '.', '_' and '-' only, and no '..'; runs with such tags are not promoted"
            )


@dataclass(frozen=True)
class Event:
    """One event of the history.

    Attributes:
        time: ISO 8601, UTC.
        action: What happened; ``restore`` makes YAML, registry and history agree again on a version.
        model: The group's model.
        modality: The group's modality.
        run_id: The run.
        version: The champion's version after the event; None for a refusal.
        previous_version: The version with the alias ``previous`` after the event.
        replaced_version: The champion's version before the event.
        replaced_run_id: The champion's run before the event.
        val_auc: The run's val AUC.
        val_auc_low: Lower end of its confidence interval.
        val_auc_high: Upper end of its confidence interval.
        replaced_val_auc: The val AUC that the run had to beat.
        difference: Val AUC minus that of the champion on the same samples.
        p_value: Of the paired test of the difference, without correction for several runs.
        runs_since: How many runs competed since the champion was promoted; ``--significant`` decides by
            ``p_value`` times this number.
        val_auc_corrected: The run's val AUC, corrected for being the best of several runs.
        chosen_among: Number of runs that it was the best of.
        corrected_with: Number of those whose stored predictions the correction used.
        runs: How many comparable runs were ranked.
        left_out: How many runs saw other data.
        data_fingerprint: The run's data.
        split_fingerprint: The run's split.
        verified: How the run's val AUC was checked.
        forced: Whether ``--force`` was given.
        new_data: Whether ``--new-data`` was given.
        reason: A sentence.
        replaced_text: The text of a replaced YAML file that this project had not written.
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
    replaced_run_id: str | None = None
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
    runs_since: int | None = None
    val_auc_corrected: float | None = None
    chosen_among: int | None = None
    corrected_with: int | None = None

    @property
    def group(self) -> Group:
        """Return the group."""
        return Group(self.model, self.modality)

    @classmethod
    def of(cls, action: Action, group: Group, run: StoredRun, reason: str) -> "Event":
        """Build an event about a run, now; the numbers are added with `replace`."""
        data, split = run.fingerprints
        return cls(
            now(),
            action,
            group.model,
            group.modality,
            run.run_id,
            reason,
            data_fingerprint=data,
            split_fingerprint=split,
        )

    def to_json(self) -> str:
        """Return the event as one line; a number that is not finite becomes null."""
        values = asdict(self)
        return json.dumps(
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        )

    @classmethod
    def from_json(cls, line: str) -> "Event | None":
        """Parse a line, ignoring keys of later releases; return None if it is not an event."""
        try:
            event = _EVENT.validate_json(line)
            return event if datetime.fromisoformat(event.time).tzinfo else None
        except ValueError:  # pydantic's errors are ValueErrors, too
            return None


_EVENT = TypeAdapter(Event)  # built once: building it takes longer than parsing a hundred lines


def now() -> str:
    """Return the time in the format of the events."""
    return datetime.now(UTC).isoformat()


def read_history(group: Group | None = None) -> list[Event]:
    """Return all events, or those of one group, oldest first; damaged lines are skipped with a warning."""
    events = []
    for number, line in enumerate(_lines(), start=1):
        event = Event.from_json(line)
        if event is None:
            warn(f"{_path()}, line {number}: not an event; it is left out")
        elif group in (None, event.group):
            events.append(event)
    return events


def last_version(events: Iterable[Event]) -> int | None:
    """Return the champion's version after the events of a group, None if there was no promotion."""
    versions = [event.version for event in events if event.action != "refusal"]
    return versions[-1] if versions else None


def rolled_back(events: Iterable[Event]) -> set[str]:
    """Return the runs of a group that were rolled back and not promoted again since."""
    runs: set[str] = set()
    for event in events:
        if event.action == "rollback" and event.replaced_run_id:
            runs.add(event.replaced_run_id)
        elif event.action == "promotion" and event.run_id:
            runs.discard(event.run_id)
    return runs


def promotions(events: Iterable[Event]) -> dict[str, Event]:
    """Return the last promotion of each run; rollbacks and restores do not count."""
    found = [event for event in events if event.action == "promotion" and event.run_id]
    found.sort(key=lambda event: datetime.fromisoformat(event.time))
    return {event.run_id: event for event in found if event.run_id}


def append(event: Event) -> None:
    """Append an event unless the history has it, as after an interrupted promotion.

    A refusal is also skipped if the same run was refused for the same reason and nothing else happened since.
    """
    events = read_history(event.group)
    since = takewhile(lambda old: old.action == "refusal", reversed(events))
    refused = {(old.run_id, old.reason) for old in since}
    if event in events or (event.action == "refusal" and (event.run_id, event.reason) in refused):
        return
    text = "".join(f"{line}\n" for line in [*_lines(), event.to_json()])
    atomic_write_bytes(_path(), text.encode(errors="surrogateescape"))


def _lines() -> list[str]:
    """Return the lines of the file; damaged bytes are kept as they are."""
    if not _path().exists():
        return []
    return _path().read_text(encoding="utf-8", errors="surrogateescape").splitlines()
