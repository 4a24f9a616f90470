"""What was promoted, rolled back and refused, when and why: one line of JSON each."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Literal

from pydantic import TypeAdapter

from ..utils.cli import warn
from ..utils.io import atomic_write_bytes
from .group import FOLDER, Group

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
        replaced_run_id: Its run.
        val_auc: The run's, with its interval.
        val_auc_low: Lower end.
        val_auc_high: Upper end.
        replaced_val_auc: The val AUC that was to be beaten.
        difference: Val AUC minus that of the champion on the same samples.
        p_value: Of the paired test of the difference, as if it were the only one.
        runs_since: How many runs competed since the champion was promoted; ``p_value`` times this number
            is what ``--significant`` decides by.
        val_auc_corrected: The run's val AUC, corrected for having been chosen among runs.
        chosen_among: Among how many.
        corrected_with: How many of these had the stored predictions that the correction needs.
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

    def to_json(self) -> str:
        """One line; a number that is not finite becomes null."""
        values = asdict(self)
        return json.dumps(
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        )

    @classmethod
    def from_json(cls, line: str) -> "Entry | None":
        """Reads such a line, without keys that a later release added; None where it is none."""
        try:
            entry = _ENTRY.validate_json(line)
            return entry if datetime.fromisoformat(entry.time).tzinfo else None
        except ValueError:  # pydantic's are ValueErrors too
            return None


_ENTRY = TypeAdapter(Entry)  # made once: building it takes longer than reading a hundred lines


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


def of_group(entries: list[Entry], group: Group) -> list[Entry]:
    """The events of one group."""
    return [e for e in entries if (e.model, e.modality) == (group.model, group.modality)]


def last_version(entries: list[Entry], group: Group) -> int | None:
    """The version that holds after the events, None where none was promoted."""
    told = [e.version for e in of_group(entries, group) if e.action != "refusal"]
    return told[-1] if told else None


def taken_back(entries: list[Entry], group: Group) -> set[str]:
    """The runs that were rolled back, and not promoted again since."""
    runs: set[str] = set()
    for entry in of_group(entries, group):
        if entry.action == "rollback" and entry.replaced_run_id:
            runs.add(entry.replaced_run_id)
        elif entry.action == "promotion" and entry.run_id:
            runs.discard(entry.run_id)
    return runs


def promotions(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Return the last promotion of each run; rollbacks and repairs do not count."""
    found = [entry for entry in entries if entry.action == "promotion" and entry.run_id]
    found.sort(key=lambda entry: datetime.fromisoformat(entry.time))
    return {entry.run_id: entry for entry in found if entry.run_id}


def append(entry: Entry) -> None:
    """Adds an event, unless it is there: an interrupted promotion is finished, not told twice.

    A refusal of the same run for the same reason is no news either, until something else happens.
    """
    told = of_group(read_history(), Group(entry.model, entry.modality))
    since = takewhile(lambda old: old.action == "refusal", reversed(told))
    refused = {(old.run_id, old.reason) for old in since}
    if entry in told or (entry.action == "refusal" and (entry.run_id, entry.reason) in refused):
        return
    text = "".join(f"{line}\n" for line in [*_lines(), entry.to_json()])
    atomic_write_bytes(PATH, text.encode(errors="surrogateescape"))


def _lines() -> list[str]:
    """Damaged bytes are carried along as they are."""
    if not PATH.exists():
        return []
    return PATH.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
