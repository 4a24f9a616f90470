"""Writes a decision: registry, YAML and history, in an order that a kill at any point leaves mendable.

The event is kept as a tag of the version before an alias moves. Whatever comes later (aliases, YAML,
history) is made from that tag, so whoever finds them behind can finish what was begun.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from ..errors import MlprojectError, TrackingError
from ..tracking import registry
from ..tracking.finished_run import FinishedRun, read_run
from ..tracking.names import (
    BEST_VAL_AUC,
    CHAMPION,
    DATA_FINGERPRINT,
    MODALITY,
    MODEL,
    PREVIOUS,
    SPLIT_FINGERPRINT,
)
from ..tracking.store import promotion_lock
from ..utils.cli import warn
from ..utils.config import Config
from ..utils.io import TEMP_PREFIX, atomic_write_text, check_writable, file_lock, sha256
from . import history
from .correction import correction_of
from .evidence import read_config, stand
from .group import FOLDER, Group
from .history import Entry, now
from .record import compose_record
from .state import (
    PROMOTION,
    RECORD_SHA256,
    ROLLED_BACK,
    VAL_AUC,
    Incumbent,
    State,
    entry_of,
    existing,
    foreign_text,
    predecessor,
)


@contextmanager
def writing() -> Iterator[None]:
    """Holds what promoters of one host share: the store, where it is local, and the folder of records.

    Raises:
        MlprojectError: The folder cannot be written; nothing was changed.
    """
    try:
        check_writable(FOLDER)
    except OSError as error:
        raise MlprojectError(
            f"{FOLDER} cannot be written: {error.strerror}; nothing was changed, in the registry neither"
        ) from None
    with ExitStack() as held:
        for path in filter(None, [promotion_lock(), FOLDER / ".lock"]):
            held.enter_context(_patiently(path))
        for left in FOLDER.glob(f"{TEMP_PREFIX}*"):  # of one that was killed while it wrote
            left.unlink()
        yield


@contextmanager
def _patiently(path: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(path, timeout=2))
        except Timeout:
            warn(f"another promotion holds {path}; waiting")
            held.enter_context(file_lock(path))
        yield


def enthrone(
    run: FinishedRun, group: Group, state: State, entry: Entry, folder: Path, *, instead_of: int | None = None
) -> int:
    """Registers a run's model, makes it champion, and returns its version.

    Args:
        run: The run.
        group: What it has won.
        state: What was there.
        entry: The event; its time and versions are filled in here.
        folder: For files of a store that is no local folder.
        instead_of: A version that is taken back, and does not count from now on.
    """
    if run.model_source is None:
        raise MlprojectError(f"run {run.run_id} has no logged model, so there is nothing to register")
    config = read_config(run, folder)
    description, facts = _description(run, entry), _facts(run, group, entry)
    version = registry.register(group.name, run.run_id, run.model_source, description, facts)
    entry = replace(entry, time=now(), version=version.number)
    if instead_of is None:
        entry = replace(entry, previous_version=predecessor(state, version.number))
    text = compose_record(config, run, group, entry)
    # The event comes last: a version that has it has all.
    tags = {ROLLED_BACK: None, **facts, RECORD_SHA256: sha256(text.encode()), PROMOTION: entry.to_json()}
    changed = {key: value for key, value in tags.items() if value != version.tags.get(key)}
    registry.describe(group.name, version.number, description)
    registry.set_tags(group.name, version.number, changed)
    if instead_of is not None:
        # Killed before this mark, nothing has happened; after it, the next promotion finishes.
        registry.set_tags(group.name, instead_of, {ROLLED_BACK: str(version.number)})
    _apply(group, entry, text)
    return version.number


def check_restorable(group: Group, incumbent: Incumbent, folder: Path) -> tuple[FinishedRun, Config]:
    """The run and settings that an incumbent's YAML is made of.

    Raises:
        MlprojectError: They are gone.
    """
    if incumbent.run_id is None:
        raise TrackingError(f"{group.name}: the champion has no run to restore {group.record_path} from")
    run = read_run(incumbent.run_id)
    return run, read_config(run, folder)


def restore(group: Group, state: State, incumbent: Incumbent, folder: Path) -> None:
    """Makes YAML, registry and history agree on the incumbent; finishes what was interrupted.

    Raises:
        MlprojectError: What the YAML is made of is gone.
    """
    run, config = check_restorable(group, incumbent, folder)
    version = state.registered.versions.get(incumbent.version or 0)
    entry = entry_of(version) if version else None
    if version is None or entry is None:
        enthrone(run, group, state, _restoring(run, group, state, incumbent, folder), folder)
        return
    text = compose_record(config, run, group, replace(entry, version=version.number))
    wanted = {RECORD_SHA256: sha256(text.encode()), ROLLED_BACK: None}
    registry.set_tags(
        group.name, version.number, {k: v for k, v in wanted.items() if v != version.tags.get(k)}
    )
    # The promotion's own line says enough, unless it has been told and something else came after.
    is_told = entry in history.read_history()
    if foreign_text(state) is not None or (is_told and state.last_version != version.number):
        again = _restoring(run, group, state, incumbent, folder)
        history.append(replace(again, version=version.number, previous_version=entry.previous_version))
    _apply(group, entry, text)


def _restoring(run: FinishedRun, group: Group, state: State, incumbent: Incumbent, folder: Path) -> Entry:
    data, split = run.fingerprints
    standing = stand(run, incumbent.val_auc, None, folder)
    return Entry(
        now(),
        "restore",
        group.model,
        group.modality,
        run.run_id,
        "YAML, registry and history did not agree",
        replaced_version=state.registered.aliases.get(CHAMPION),
        val_auc=incumbent.val_auc,
        val_auc_low=standing.low,
        val_auc_high=standing.high,
        data_fingerprint=data,
        split_fingerprint=split,
        replaced_text=foreign_text(state),
    )


def _apply(group: Group, entry: Entry, text: str) -> None:
    """Brings aliases, YAML and history to where the entry says; what is there already stays untouched."""
    there = registry.read_registered(group.name)
    if there.aliases.get(CHAMPION) != entry.version:
        registry.set_alias(group.name, CHAMPION, entry.version)
    previous = existing(there, entry.previous_version)
    if there.aliases.get(PREVIOUS) != previous:
        registry.set_alias(group.name, PREVIOUS, previous)
    path = group.record_path
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write_text(path, text)
    history.append(entry)


def _facts(run: FinishedRun, group: Group, entry: Entry) -> dict[str, str]:
    """What a version's tags say of its run."""
    data, split = run.fingerprints
    values: dict[str, object] = {
        MODEL: group.model,
        MODALITY: group.modality,
        "run_id": run.run_id,
        VAL_AUC: repr(run.metrics[BEST_VAL_AUC]),
        "val_auc_low": entry.val_auc_low,
        "val_auc_high": entry.val_auc_high,
        "val_auc_corrected": entry.val_auc_corrected,
        "test_auc": run.metrics.get("test_auc"),
        "threshold": run.metrics.get("best_threshold"),
        DATA_FINGERPRINT: data,
        SPLIT_FINGERPRINT: split,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _description(run: FinishedRun, entry: Entry) -> str:
    """For people; the registry's list shows how it starts."""
    low, high, metrics = entry.val_auc_low, entry.val_auc_high, run.metrics
    ends = "" if low is None or high is None else f" (95 % interval {low:.4f} to {high:.4f})"
    lines = [f"Val AUC {metrics[BEST_VAL_AUC]:.4f}{ends}."]
    if (correction := correction_of(entry)) is not None:
        lines.append(f"Val AUC {correction}.")
    if "test_auc" in metrics:
        lines.append(f"Test AUC {metrics['test_auc']:.4f}.")
    if "best_threshold" in metrics:
        lines.append(f"Threshold {metrics['best_threshold']:.4f}.")
    lines += [f"{entry.model} on {entry.modality}, run {run.run_id}.", f"Why: {entry.reason}."]
    return "\n".join(lines)
