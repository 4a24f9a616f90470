"""What a group holds now: YAML, registry and history side by side, and which of them has the word."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ..errors import TrackingError
from ..evaluation.auc import is_better
from ..tracking.finished_run import read_run
from ..tracking.names import (
    BEST_VAL_AUC,
    CHAMPION,
    DATA_FINGERPRINT,
    MODALITY,
    MODEL,
    PREVIOUS,
    SPLIT_FINGERPRINT,
)
from ..tracking.registry import Registered, Version, read_registered
from .group import Group
from .history import Entry, last_version, of_group, promotions, read_history, taken_back
from .record import Record, read_record

PROMOTION = "promotion"
"""Tag of a version: the event that made it champion, as the history has it."""
RECORD_SHA256 = "yaml.sha256"
ROLLED_BACK = "rolled_back_to"
"""Tag of a version that was taken back: the version that holds instead."""
VAL_AUC = "val_auc"


@dataclass(frozen=True)
class State:
    """What is there.

    Attributes:
        record: The YAML, None where there is none.
        registered: The registry's side.
        last_version: The version that holds by the history.
        taken_back: Runs that were rolled back.
        won: The last promotion of each run, by its id.
    """

    record: Record | None
    registered: Registered
    last_version: int | None
    taken_back: frozenset[str]
    won: Mapping[str, Entry]


@dataclass(frozen=True)
class Incumbent:
    """What a run must beat.

    Attributes:
        val_auc: Its val AUC.
        run_id: Its run, None for a hand-made YAML.
        version: Its registered version, None where only the YAML knows it.
        fingerprints: Its data and split, None where unknown.
    """

    val_auc: float
    run_id: str | None
    version: int | None
    fingerprints: tuple[str, str] | None


def read_state(group: Group) -> State:
    """Reads all three.

    Raises:
        ConfigError: The YAML is damaged.
        TrackingError: The registry cannot be read, or the name is another group's there.
    """
    registered, entries = read_registered(group.name), read_history()
    for version in registered.versions.values():
        whose = (version.tags.get(MODEL, group.model), version.tags.get(MODALITY, group.modality))
        if whose != (group.model, group.modality):
            raise TrackingError(f"the registered model {group.name} is of {whose[0]} on {whose[1]}")
    # A version that was rolled back may be deleted since: the history remembers its run.
    marked = {v.run_id for v in registered.versions.values() if v.run_id and ROLLED_BACK in v.tags}
    back = frozenset(marked | taken_back(entries, group))
    tagged = [entry for entry in map(entry_of, registered.versions.values()) if entry is not None]
    won = promotions([*of_group(entries, group), *tagged])
    return State(read_record(group), registered, last_version(entries, group), back, won)


def entry_of(version: Version) -> Entry | None:
    """The event that made a version champion; None where somebody else did."""
    line = version.tags.get(PROMOTION)
    return Entry.from_json(line) if line else None


def find_incumbent(state: State) -> Incumbent | None:
    """Decides between YAML and champion where they differ.

    A YAML that is missing, or older than the champion's promotion, gives way. Else the better of the
    two by val AUC holds. A version that was rolled back never does.

    Raises:
        TrackingError: The champion was set by hand and its val AUC cannot be found.
    """
    record, champion = state.record, _in_force(state.registered)
    if champion is None:
        return None if record is None else _from_record(record, state.registered)
    mine = _from_version(champion)
    if record is None or _is_older(record, champion):
        return mine
    named = _named_by(record, state.registered)
    if named is not None and (named == champion or ROLLED_BACK in named.tags):
        return mine
    other = _from_record(record, state.registered)
    return other if is_better(other.val_auc, mine.val_auc) else mine


def is_settled(state: State, incumbent: Incumbent) -> bool:
    """Whether YAML, registry and history agree on the incumbent, to the byte."""
    registered = state.registered
    version = registered.versions.get(incumbent.version or 0)
    if version is None:
        # A hand-made YAML has no run to register.
        return incumbent.run_id is None
    entry, champion = entry_of(version), registered.champion
    return (
        entry is not None
        and champion is not None
        and champion.number == version.number == state.last_version
        and ROLLED_BACK not in version.tags
        and state.record is not None
        and state.record.sha256 == version.tags.get(RECORD_SHA256)
        and registered.aliases.get(PREVIOUS) == existing(registered, entry.previous_version)
    )


def foreign_text(state: State) -> str | None:
    """The YAML's text where promotion has not written it, so that replacing it would lose it."""
    record = state.record
    if record is None or record.sha256 in {
        v.tags.get(RECORD_SHA256) for v in state.registered.versions.values()
    }:
        return None
    return record.text


def predecessor(state: State, number: int) -> int | None:
    """What the alias ``previous`` is to point to once version ``number`` is champion."""
    registered = state.registered
    held = [registered.aliases.get(CHAMPION), state.last_version]
    for version in held:
        if version is not None and version != number and version in registered.versions:
            return version
    entry = entry_of(registered.versions[number]) if number in registered.versions else None
    return None if entry is None else existing(registered, entry.previous_version)


def existing(registered: Registered, number: int | None) -> int | None:
    """``number`` where there is such a version."""
    return number if number in registered.versions else None


def _in_force(registered: Registered) -> Version | None:
    """The champion, or what an interrupted rollback has put in its place."""
    version = registered.champion
    for _ in registered.versions:
        if version is None or ROLLED_BACK not in version.tags:
            break
        target = version.tags[ROLLED_BACK]
        version = registered.versions.get(int(target) if target.isdigit() else 0)
    return version


def _is_older(record: Record, champion: Version) -> bool:
    entry = entry_of(champion)
    if entry is None:  # set by hand: nothing says when
        return False
    return record.updated_at is None or record.updated_at < datetime.fromisoformat(entry.time)


def _from_version(version: Version) -> Incumbent:
    tags = version.tags
    if entry_of(version) is None and version.run_id is not None:
        # Somebody else made it champion: what its tags say, if anything, is not ours.
        run = read_run(version.run_id)
        tags = {**run.tags, VAL_AUC: str(run.metrics.get(BEST_VAL_AUC))}
    try:
        val_auc = float(tags.get(VAL_AUC, ""))
    except ValueError:
        val_auc = math.nan
    if not math.isfinite(val_auc):
        raise TrackingError(
            f"the val AUC of version {version.number}, the champion, is not known; set its tag {VAL_AUC}, "
            f"or point the alias champion to another version"
        )
    fingerprints = _pair(tags.get(DATA_FINGERPRINT), tags.get(SPLIT_FINGERPRINT))
    return Incumbent(val_auc, version.run_id, version.number, fingerprints)


def _from_record(record: Record, registered: Registered) -> Incumbent:
    version = _named_by(record, registered)
    if version is not None:
        return _from_version(version)
    if record.run_id is None:
        return Incumbent(record.val_auc, None, None, None)
    try:
        fingerprints = _pair(*read_run(record.run_id).fingerprints)
    except TrackingError:  # another store's, or deleted: its number still is to be beaten
        return Incumbent(record.val_auc, None, None, None)
    return Incumbent(record.val_auc, record.run_id, None, fingerprints)


def _named_by(record: Record, registered: Registered) -> Version | None:
    """The version that a record names, where it is still of the same run."""
    version = registered.versions.get(record.version or 0)
    return version if version is not None and version.run_id == record.run_id else None


def _pair(data: str | None, split: str | None) -> tuple[str, str] | None:
    return None if data is None or split is None else (data, split)
