"""What a group has now: YAML file, registry and history, and which of them holds if they differ."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from ..errors import TrackingError
from ..evaluation.auc import is_better
from ..evaluation.intervals import Estimate
from ..evaluation.metric_names import BEST_VAL_AUC, VAL_AUC
from ..evaluation.predictions import Predictions
from ..tracking import names
from ..tracking.registry import Registered, Version, read_registered
from ..tracking.stored_run import read_run
from .best_hparams import BestHparams, read_best_hparams
from .history import Event, Group, last_version, promotions, read_history, rolled_back

Fingerprints = tuple[str | None, str | None]
"""Of data and split; None where it is unknown."""


@dataclass(frozen=True)
class State:
    """Promotion state of one group: its YAML file, its registered model and its history.

    Attributes:
        group: The group.
        yaml: The YAML file, None if there is none.
        registered: The registered model.
        last_version: The champion's version according to the history.
        rolled_back: Ids of the runs that were rolled back.
        promotions: The last promotion of each run, by run id.
    """

    group: Group
    yaml: BestHparams | None
    registered: Registered
    last_version: int | None
    rolled_back: frozenset[str]
    promotions: Mapping[str, Event]


@dataclass(frozen=True)
class Contender:
    """The champion, or the candidate that would replace it.

    Attributes:
        val_auc: Its reported val AUC.
        run_id: Its run, None for a hand-made YAML file.
        version: Its registered version, None if it has none.
        fingerprints: Its data and split.
        interval: Confidence interval of the AUC, None if the predictions are missing.
        predictions: Predictions on the validation split, None if they are missing.
        is_leaky: Whether it was allowed a leak between splits.
    """

    val_auc: float
    run_id: str | None = None
    version: int | None = None
    fingerprints: Fingerprints = (None, None)
    interval: Estimate | None = None
    predictions: Predictions | None = None
    is_leaky: bool = False

    @property
    def low(self) -> float | None:
        """Return the lower end of the interval, None if there is none."""
        return None if self.interval is None or math.isnan(self.interval.low) else self.interval.low

    @property
    def high(self) -> float | None:
        """Return the upper end of the interval, None if there is none."""
        return None if self.interval is None or math.isnan(self.interval.high) else self.interval.high


def read_state(group: Group) -> State:
    """Read YAML file, registry and history of a group.

    Raises:
        ConfigError: The YAML file is damaged.
        TrackingError: The registry cannot be read, or has another group under this name.
    """
    registered, events = read_registered(group.name), read_history(group)
    for version in registered.versions.values():
        whose = (version.tags.get(names.MODEL, group.model), version.tags.get(names.MODALITY, group.modality))
        if whose != (group.model, group.modality):
            raise TrackingError(f"the registered model {group.name} is of {whose[0]} on {whose[1]}")
    # A version that was rolled back may be deleted since, but the history has its run.
    marked = {v.run_id for v in registered.versions.values() if v.run_id and names.ROLLED_BACK_TO in v.tags}
    back = frozenset(marked | rolled_back(events))
    tagged = [event for event in map(event_of, registered.versions.values()) if event is not None]
    promoted = promotions([*events, *tagged])
    return State(group, read_best_hparams(group), registered, last_version(events), back, promoted)


def event_of(version: Version) -> Event | None:
    """Return the event that made a version champion; None if this project did not."""
    line = version.tags.get(names.PROMOTION_EVENT)
    return Event.from_json(line) if line else None


def find_champion(state: State) -> Contender | None:
    """Return what a candidate must beat, also if YAML file and registered champion differ.

    A YAML file that is missing or older than the champion's promotion does not count. Otherwise the better
    of the two by val AUC holds. A version that was rolled back never holds.

    Raises:
        TrackingError: The champion was set by hand and its val AUC is unknown.
    """
    yaml, version = state.yaml, _champion_after_rollback(state.registered)
    if version is None:
        return None if yaml is None else _from_yaml(yaml, state.registered)
    registered = _from_version(version)
    if yaml is None or _is_older(yaml, version):
        return registered
    named = _named_version(yaml, state.registered)
    if named is not None and (named == version or names.ROLLED_BACK_TO in named.tags):
        return registered
    recorded = _from_yaml(yaml, state.registered)
    return recorded if is_better(recorded.val_auc, registered.val_auc) else registered


def is_consistent(state: State, champion: Contender) -> bool:
    """Return whether YAML file, registry and history agree on the champion, to the byte."""
    registered = state.registered
    version = registered.versions.get(champion.version or 0)
    if version is None:
        # A hand-made YAML file has no run to register.
        return champion.run_id is None
    event = event_of(version)
    return (
        event is not None
        and registered.aliases.get(names.CHAMPION) == version.number == state.last_version
        and names.ROLLED_BACK_TO not in version.tags
        and state.yaml is not None
        and state.yaml.sha256 == version.tags.get(names.YAML_SHA256)
        and registered.aliases.get(names.PREVIOUS) == if_exists(registered, event.previous_version)
    )


def unmanaged_yaml(state: State) -> str | None:
    """Return the text of a YAML file that no promotion has written, so that replacing it would lose it."""
    known = {version.tags.get(names.YAML_SHA256) for version in state.registered.versions.values()}
    return None if state.yaml is None or state.yaml.sha256 in known else state.yaml.text


def previous_version(state: State, number: int) -> int | None:
    """Return the version that gets the alias ``previous`` once version ``number`` is champion."""
    registered = state.registered
    for version in (registered.aliases.get(names.CHAMPION), state.last_version):
        if version is not None and version != number and version in registered.versions:
            return version
    event = event_of(registered.versions[number]) if number in registered.versions else None
    return None if event is None else if_exists(registered, event.previous_version)


def if_exists(registered: Registered, number: int | None) -> int | None:
    """Return ``number`` if there is such a version, else None."""
    return number if number in registered.versions else None


def _champion_after_rollback(registered: Registered) -> Version | None:
    """Return the champion, or the version that replaces it after an interrupted rollback."""
    version = registered.champion
    for _ in registered.versions:
        if version is None or names.ROLLED_BACK_TO not in version.tags:
            break
        target = version.tags[names.ROLLED_BACK_TO]
        version = registered.versions.get(int(target) if target.isdigit() else 0)
    return version


def _is_older(yaml: BestHparams, champion: Version) -> bool:
    event = event_of(champion)
    if event is None:  # set by hand, at an unknown time
        return False
    return yaml.updated_at is None or yaml.updated_at < datetime.fromisoformat(event.time)


def _from_version(version: Version) -> Contender:
    tags = version.tags
    if event_of(version) is None and version.run_id is not None:
        # It was made champion by hand: its tags, if any, are not from this project.
        run = read_run(version.run_id)
        tags = {**run.tags, VAL_AUC: str(run.metrics.get(BEST_VAL_AUC))}
    try:
        val_auc = float(tags.get(VAL_AUC, ""))
    except ValueError:
        val_auc = math.nan
    if not math.isfinite(val_auc):
        raise TrackingError(
            f"the val AUC of version {version.number}, the champion, is unknown; set its tag "
            f"{VAL_AUC}, or point the alias champion to another version"
        )
    fingerprints = tags.get(names.DATA_FINGERPRINT), tags.get(names.SPLIT_FINGERPRINT)
    return Contender(val_auc, version.run_id, version.number, fingerprints)


def _from_yaml(yaml: BestHparams, registered: Registered) -> Contender:
    version = _named_version(yaml, registered)
    if version is not None:
        return _from_version(version)
    if yaml.run_id is not None:
        with suppress(TrackingError):  # in another store, or deleted: its val AUC still has to be beaten
            return Contender(yaml.val_auc, yaml.run_id, fingerprints=read_run(yaml.run_id).fingerprints)
    return Contender(yaml.val_auc)


def _named_version(yaml: BestHparams, registered: Registered) -> Version | None:
    """Return the version that a YAML file names, if it still is of the same run."""
    version = registered.versions.get(yaml.version or 0)
    return version if version is not None and version.run_id == yaml.run_id else None
