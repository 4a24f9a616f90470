"""Puts the previous version back: alias, YAML and history together."""

import tempfile
from dataclasses import replace
from pathlib import Path

from ..errors import MlprojectError, UserError
from ..tracking.finished_run import read_run
from ..tracking.registry import Version
from .group import Group
from .history import Entry, now
from .settle import enthrone, restore, writing
from .state import (
    ROLLED_BACK,
    Incumbent,
    State,
    entry_of,
    existing,
    find_incumbent,
    is_settled,
    read_state,
)


def roll_back(group: Group, *, dry_run: bool) -> str:
    """Takes the champion back and returns what was done, in words.

    Raises:
        UserError: There is no previous version; nothing was changed.
    """
    try:
        group.check_name()
    except MlprojectError as error:
        raise UserError(str(error)) from None
    champion, previous = _pair(group, read_state(group))
    plan = f"{group.name}: champion is version {previous.number} again, version {champion} is taken back"
    if dry_run:
        return f"{plan} (dry run: nothing was changed)"
    with writing(), tempfile.TemporaryDirectory(prefix="promote-") as folder:
        state = read_state(group)
        incumbent = find_incumbent(state)
        if incumbent is not None and not is_settled(state, incumbent):
            restore(group, state, incumbent, Path(folder))
            state = read_state(group)
        champion, previous = _pair(group, state)
        _swap(group, state, champion, previous, Path(folder))
    return plan


def _pair(group: Group, state: State) -> tuple[int, Version]:
    """The version that holds, and the one to put back."""
    incumbent: Incumbent | None = find_incumbent(state)
    previous = state.registered.previous
    if incumbent is None or incumbent.version is None:
        raise UserError(f"{group.name}: there is no champion to roll back")
    if previous is None or previous.number == incumbent.version or ROLLED_BACK in previous.tags:
        raise UserError(f"{group.name}: version {incumbent.version} has no previous version to go back to")
    return incumbent.version, previous


def _swap(group: Group, state: State, champion: int, previous: Version, folder: Path) -> None:
    if previous.run_id is None:
        raise UserError(f"{group.name}: version {previous.number} has no run, so its YAML cannot be written")
    run = read_run(previous.run_id)
    before = entry_of(previous)
    data, split = run.fingerprints
    entry = Entry(
        now(),
        "rollback",
        group.model,
        group.modality,
        run.run_id,
        f"version {champion} was rolled back",
        previous_version=existing(state.registered, before.previous_version) if before else None,
        replaced_version=champion,
        replaced_run_id=state.registered.versions[champion].run_id,
        data_fingerprint=data,
        split_fingerprint=split,
    )
    if before is not None:
        entry = replace(
            entry,
            val_auc=before.val_auc,
            val_auc_low=before.val_auc_low,
            val_auc_high=before.val_auc_high,
            val_auc_corrected=before.val_auc_corrected,
            chosen_among=before.chosen_among,
            corrected_with=before.corrected_with,
        )
    enthrone(run, group, state, entry, folder, instead_of=champion)
