"""Says whether YAML, registry and history agree, and whether champions can be loaded; reads only."""

import tempfile
from collections import Counter
from pathlib import Path

from ..errors import ClaimError, MlprojectError
from ..tracking.finished_run import read_run
from ..tracking.model_files import check_model_files
from ..tracking.names import MODALITY, MODEL, PREVIOUS
from ..tracking.registry import Version, champions
from ..utils.config import Config
from .evidence import read_config
from .group import FOLDER, Group
from .history import read_history
from .state import PROMOTION, RECORD_SHA256, ROLLED_BACK, State, entry_of, existing, read_state


def check(model: str | None, modality: str | None) -> dict[str, list[str]]:
    """Looks at every group that has a YAML or a champion of ours.

    Returns:
        What does not agree, by the name of the group; an empty list where all does.
    """
    groups = _of_files()
    for entry in read_history():
        told = Group(entry.model, entry.modality)
        if entry.action != "refusal":
            groups.setdefault(told.name, told)
    for name, tags in champions():
        if PROMOTION in tags and MODEL in tags and MODALITY in tags:
            groups.setdefault(name, Group(tags[MODEL], tags[MODALITY]))
    found: dict[str, list[str]] = {}
    for name, group in sorted(groups.items()):
        if isinstance(group, str):
            found[name] = [group]
        elif model in (None, group.model) and modality in (None, group.modality):
            found[name] = _problems(group)
    return found


def _of_files() -> dict[str, Group | str]:
    """The group of each YAML by name, or what is wrong with the file."""
    groups: dict[str, Group | str] = {}
    for path in sorted(FOLDER.glob("[!.]*.yaml")):
        try:
            config = Config.from_file(path)
            group = Group(config.model.name, config.modality)
            groups[path.stem] = group if group.record_path == path else f"{path} is of {group.name}"
        except MlprojectError as error:
            groups[path.stem] = str(error)
    return groups


def _problems(group: Group) -> list[str]:
    try:
        group.check_name()
        state = read_state(group)
    except MlprojectError as error:
        return [str(error)]
    champion, record = state.registered.champion, state.record
    if champion is None:
        named = state.last_version if record is None or record.run_id is None else record.version
        if named is None:
            return []  # hand-made: there is nothing to agree with
        return [f"version {named} was promoted, and the registry has no champion"]
    problems = [*_not_loadable(group, champion), *_against_registry(group, state)]
    if state.last_version != champion.number:
        problems.append(
            f"the history's last version is {state.last_version}, the champion is {champion.number}"
        )
    repeated = Counter((v.run_id, v.source) for v in state.registered.versions.values())
    problems += [
        f"run {run} has {count} versions: delete those without an alias"
        for (run, _), count in repeated.items()
        if count > 1
    ]
    return problems


def _not_loadable(group: Group, champion: Version) -> list[str]:
    """Why ``python -m src.predict`` would refuse the champion, as far as can be said without loading it."""
    try:
        if champion.run_id is None:
            raise ClaimError("it was registered by hand and names no run, so its settings are not known")
        with tempfile.TemporaryDirectory(prefix="promote-") as folder:
            read_config(read_run(champion.run_id), Path(folder))
        check_model_files(champion.source)
    except MlprojectError as error:
        return [
            f"version {champion.number}, the champion, cannot be used: {error}; or python -m src.promote "
            f"--rollback --model {group.model} --modality {group.modality} puts the version before it back"
        ]
    return []


def _against_registry(group: Group, state: State) -> list[str]:
    champion, record = state.registered.champion, state.record
    assert champion is not None
    entry, problems = entry_of(champion), []
    if ROLLED_BACK in champion.tags:
        problems.append(f"version {champion.number} was rolled back and still is the champion")
    if record is None:
        problems.append(f"{group.record_path} is missing; the champion is version {champion.number}")
    elif record.run_id is None:
        problems.append(f"{group.record_path} is hand-made, the champion is version {champion.number}")
    elif (record.version, record.run_id) != (champion.number, champion.run_id):
        problems.append(
            f"{group.record_path} names version {record.version} of run {record.run_id}, "
            f"the champion is version {champion.number} of {_run_of(champion)}"
        )
    elif record.sha256 != champion.tags.get(RECORD_SHA256):
        problems.append(f"{group.record_path} was changed after it was written")
    if entry is None:
        problems.append(f"version {champion.number} was made champion by somebody else")
    elif state.registered.aliases.get(PREVIOUS) != existing(state.registered, entry.previous_version):
        problems.append(f"the alias previous does not point to version {entry.previous_version}")
    return problems


def _run_of(version: Version) -> str:
    return "no run" if version.run_id is None else f"run {version.run_id}"
