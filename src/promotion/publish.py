"""Publishing of a champion, its restoration and its rollback: registry, YAML file and history.

The order of writes makes a kill at any point repairable. The event is stored as a tag of the version before
an alias moves. Everything later (aliases, YAML file, history) is derived from that tag, so the next promotion
can complete an interrupted one.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from ..errors import MlprojectError, TrackingError, UserError
from ..evaluation.metric_names import BEST_THRESHOLD, TEST_AUC, VAL_AUC
from ..tracking import names, registry
from ..tracking.registry import Version
from ..tracking.store import promotion_lock
from ..tracking.stored_run import StoredRun, read_run
from ..utils.cli import warn
from ..utils.io import TEMP_PREFIX, atomic_write_text, check_writable, file_lock, sha256
from . import history
from .best_hparams import compose_yaml
from .evidence import correction_of, read_config, verify, with_evidence
from .history import Event, Group, best_hparams_folder, now
from .state import (
    Contender,
    State,
    event_of,
    find_champion,
    if_exists,
    is_consistent,
    previous_version,
    read_state,
    unmanaged_yaml,
)


@contextmanager
def writing() -> Iterator[None]:
    """Hold the locks that promotions on one host share: of a local store, and of the folder of YAML files.

    Raises:
        MlprojectError: The folder cannot be written; nothing was changed.
    """
    yaml_folder = best_hparams_folder()
    try:
        check_writable(yaml_folder)
    except OSError as error:
        raise MlprojectError(
            f"{yaml_folder} cannot be written: {error.strerror}; nothing was changed, including the registry"
        ) from None
    with ExitStack() as held:
        for path in filter(None, [promotion_lock(), yaml_folder / ".lock"]):
            try:
                held.enter_context(file_lock(path, timeout=2))
            except Timeout:
                warn(f"another promotion holds {path}; waiting")
                held.enter_context(file_lock(path))
        for leftover in yaml_folder.glob(f"{TEMP_PREFIX}*"):  # of a process that was killed while writing
            leftover.unlink()
        yield


def register_champion(
    run: StoredRun, state: State, event: Event, folder: Path, *, instead_of: int | None = None
) -> int:
    """Register a run's model, make it champion, and return its version.

    Args:
        run: The run.
        state: What the run's group has now.
        event: The event; its time and versions are filled in here.
        folder: Where to download files to if the store is not a local folder.
        instead_of: A version that is rolled back.
    """
    if run.model_source is None:
        raise MlprojectError(f"run {run.run_id} has no logged model, so there is nothing to register")
    name, config = state.group.name, read_config(run, folder)
    description, facts = _description(run, event), _facts(run, event)
    version = registry.register(name, run.run_id, run.model_source, description, facts)
    event = replace(event, time=now(), version=version.number)
    if instead_of is None:
        event = replace(event, previous_version=previous_version(state, version.number))
    text = compose_yaml(config, run, event)
    # The event comes last: a version that has it has all tags.
    written = {names.YAML_SHA256: sha256(text.encode()), names.PROMOTION_EVENT: event.to_json()}
    tags = {names.ROLLED_BACK_TO: None, **facts, **written}
    registry.describe(name, version.number, description)
    registry.set_tags(name, version.number, _changed(tags, version))
    if instead_of is not None:
        # A kill before this tag changes nothing; after it, the next promotion completes the rollback.
        registry.set_tags(name, instead_of, {names.ROLLED_BACK_TO: str(version.number)})
    _publish(event, text)
    return version.number


def restore(
    state: State, champion: Contender, folder: Path, *, verify_new: bool = False, dry_run: bool = False
) -> None:
    """Make YAML file, registry and history agree on the champion, also after an interrupted promotion.

    Args:
        state: What the group has now.
        champion: Its champion.
        folder: Where to download files to if the store is not a local folder.
        verify_new: Verify a champion that was not promoted by this project.
        dry_run: Check that it is possible, but write nothing.

    Raises:
        MlprojectError: What the YAML file is made of is missing, or the run could not be verified.
    """
    if champion.run_id is None:
        name, path = state.group.name, state.group.yaml_path
        raise TrackingError(f"{name}: the champion has no run to restore {path} from")
    run = read_run(champion.run_id)
    config = read_config(run, folder)
    version = state.registered.versions.get(champion.version or 0)
    event = event_of(version) if version else None
    if event is None and verify_new:
        verify(run, folder)
    if dry_run:
        return
    if version is None or event is None:
        register_champion(run, state, _restore_event(run, state, champion, folder), folder)
        return
    text = compose_yaml(config, run, replace(event, version=version.number))
    tags = {names.YAML_SHA256: sha256(text.encode()), names.ROLLED_BACK_TO: None}
    registry.set_tags(state.group.name, version.number, _changed(tags, version))
    # The promotion's own event suffices, unless the history has it already, and another event after it.
    is_recorded = event in history.read_history(state.group)
    if unmanaged_yaml(state) is not None or (is_recorded and state.last_version != version.number):
        again = _restore_event(run, state, champion, folder)
        history.append(replace(again, version=version.number, previous_version=event.previous_version))
    _publish(event, text)


def roll_back(group: Group, *, dry_run: bool) -> str:
    """Make the previous version champion again, and return what was done, in words.

    Raises:
        UserError: There is no such group or no previous version; nothing was changed.
    """
    group.check_name()
    current, previous = _current_and_previous(read_state(group))
    plan = f"{group.name}: champion is version {previous.number} again, version {current} is taken back"
    if dry_run:
        return f"{plan} (dry run: nothing was changed)"
    with writing(), tempfile.TemporaryDirectory(prefix="promote-") as folder:
        state = read_state(group)
        champion = find_champion(state)
        if champion is not None and not is_consistent(state, champion):
            restore(state, champion, Path(folder))
            state = read_state(group)
        _swap(state, *_current_and_previous(state), Path(folder))
    return plan


def _current_and_previous(state: State) -> tuple[int, Version]:
    """Return the number of the champion's version, and the version that replaces it."""
    name, champion, previous = state.group.name, find_champion(state), state.registered.previous
    if champion is None or champion.version is None:
        raise UserError(f"{name}: there is no champion to roll back")
    if previous is None or previous.number == champion.version or names.ROLLED_BACK_TO in previous.tags:
        raise UserError(f"{name}: version {champion.version} has no previous version to go back to")
    return champion.version, previous


def _swap(state: State, current: int, previous: Version, folder: Path) -> None:
    if previous.run_id is None:
        raise UserError(
            f"{state.group.name}: version {previous.number} has no run, so its YAML cannot be written"
        )
    run, before = read_run(previous.run_id), event_of(previous)
    event = replace(
        Event.of("rollback", state.group, run, f"version {current} was rolled back"),
        replaced_version=current,
        replaced_run_id=state.registered.versions[current].run_id,
    )
    if before is not None:
        event = replace(
            event,
            previous_version=if_exists(state.registered, before.previous_version),
            val_auc=before.val_auc,
            val_auc_low=before.val_auc_low,
            val_auc_high=before.val_auc_high,
            val_auc_corrected=before.val_auc_corrected,
            chosen_among=before.chosen_among,
            corrected_with=before.corrected_with,
        )
    register_champion(run, state, event, folder, instead_of=current)


def _restore_event(run: StoredRun, state: State, champion: Contender, folder: Path) -> Event:
    champion = with_evidence(champion, run, folder)
    return replace(
        Event.of("restore", state.group, run, "YAML, registry and history did not agree"),
        replaced_version=state.registered.aliases.get(names.CHAMPION),
        val_auc=champion.val_auc,
        val_auc_low=champion.low,
        val_auc_high=champion.high,
        replaced_text=unmanaged_yaml(state),
    )


def _changed(tags: dict[str, str | None], version: Version) -> dict[str, str | None]:
    return {key: value for key, value in tags.items() if value != version.tags.get(key)}


def _publish(event: Event, text: str) -> None:
    """Write aliases, YAML file and history as the event says; what is right already stays untouched."""
    name, path = event.group.name, event.group.yaml_path
    registered = registry.read_registered(name)
    if registered.aliases.get(names.CHAMPION) != event.version:
        registry.set_alias(name, names.CHAMPION, event.version)
    previous = if_exists(registered, event.previous_version)
    if registered.aliases.get(names.PREVIOUS) != previous:
        registry.set_alias(name, names.PREVIOUS, previous)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write_text(path, text)
    history.append(event)


def _facts(run: StoredRun, event: Event) -> dict[str, str]:
    """Return the tags of a version that describe its run."""
    values: dict[str, object] = {
        names.MODEL: event.model,
        names.MODALITY: event.modality,
        "run_id": run.run_id,
        VAL_AUC: repr(run.val_auc),
        "val_auc_low": event.val_auc_low,
        "val_auc_high": event.val_auc_high,
        "val_auc_corrected": event.val_auc_corrected,
        TEST_AUC: run.metrics.get(TEST_AUC),
        "threshold": run.metrics.get(BEST_THRESHOLD),
        names.DATA_FINGERPRINT: run.data_fingerprint,
        names.SPLIT_FINGERPRINT: run.split_fingerprint,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _description(run: StoredRun, event: Event) -> str:
    """Return the description of a version; the registry's list shows its start."""
    low, high, metrics = event.val_auc_low, event.val_auc_high, run.metrics
    ends = "" if low is None or high is None else f" (95 % interval {low:.4f} to {high:.4f})"
    lines = [f"Val AUC {run.val_auc:.4f}{ends}."]
    if (correction := correction_of(event)) is not None:
        lines.append(f"Val AUC {correction}.")
    if TEST_AUC in metrics:
        lines.append(f"Test AUC {metrics[TEST_AUC]:.4f}.")
    if BEST_THRESHOLD in metrics:
        lines.append(f"Threshold {metrics[BEST_THRESHOLD]:.4f}.")
    lines += [f"{event.model} on {event.modality}, run {run.run_id}.", f"Why: {event.reason}."]
    return "\n".join(lines)
