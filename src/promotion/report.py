"""Reports on promotion for the user: the result of a promotion, and the consistency check."""

import math
import tempfile
from collections import Counter
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..errors import ClaimError, MlprojectError
from ..tracking.logged_model import check_model_files
from ..tracking.names import MODALITY, MODEL, PREVIOUS, PROMOTION_EVENT, ROLLED_BACK_TO, YAML_SHA256
from ..tracking.registry import Version, champions
from ..tracking.stored_run import read_run
from ..utils.cli import command
from ..utils.config import Config
from ..utils.console import wide_console
from .evidence import Correction, correction_of, read_config
from .history import Group, best_hparams_folder, read_history
from .select import Request, Verdict, adjust_p
from .state import Contender, State, event_of, if_exists, read_state
from .workflow import Decision, Result, promote


def promote_and_report(request: Request) -> None:
    """Promote, print a table, and print why each group was decided as it was.

    Raises:
        MlprojectError: A group could not be decided or written, or a run could not be verified.
    """
    results = promote(request)
    console = wide_console()
    table = Table("group", "champion", "candidate", "difference", "p", "runs", "left out", "decision")
    for result in results:
        table.add_row(*map(escape, _row(result, dry_run=request.dry_run)))
    console.print(table)
    for result in results:
        for line in (*(f"refused: {why}" for why in result.unverified), result.reason):
            console.print(f"{result.group.name}: {line}", soft_wrap=True, markup=False)
    if request.dry_run:
        console.print("dry run: nothing was changed")
    alarming = [r.group.name for r in results if r.verdict is Verdict.FAIL or r.unverified]
    if alarming:
        raise MlprojectError(f"needs attention, see the lines above: {', '.join(alarming)}")


def _row(result: Result, *, dry_run: bool) -> list[str]:
    decision, verdict = result.decision, result.verdict
    is_planned = dry_run and verdict in (Verdict.PROMOTE, Verdict.REFUSE)
    shown = f"would be {verdict.value}" if is_planned else verdict.value
    if decision is None:
        return [result.group.name, "", "", "", "", "", "", shown]
    found, selection = decision.difference, decision.selection
    return [
        result.group.name,
        _side(decision.champion, _recorded_correction(decision)),
        _side(decision.candidate, result.correction),
        "" if found is None else f"{found.value:+.4f}",
        "" if found is None or math.isnan(found.p) else _p(found.p, decision.runs_since),
        str(len(selection.comparable)),
        "\n".join(f"{len(runs)} {reason}" for reason, runs in selection.left_out.items() if runs),
        shown,
    ]


def _recorded_correction(decision: Decision) -> Correction | None:
    """Return the correction that was recorded when the champion was promoted."""
    number = None if decision.champion is None else decision.champion.version
    version = decision.state.registered.versions.get(number or 0)
    return None if version is None else correction_of(event_of(version))


def _p(p: float, runs: int) -> str:
    """Format the p value of the pair, and below it the p value for the best of several runs."""
    return f"{p:.3g}" if runs == 1 else f"{p:.3g}\n{adjust_p(p, runs):.3g} for the best of {runs}"


def _side(side: Contender | None, correction: Correction | None) -> str:
    """Format AUC, interval and its method, the corrected AUC, and the run."""
    if side is None:
        return "none"
    lines = [f"{side.val_auc:.4f}"]
    if side.interval is not None and side.low is not None:
        lines[0] += f" ({side.low:.4f} to {side.interval.high:.4f})"
        lines.append(f"95 % {side.interval.note}")
    elif side.interval is not None:
        lines.append(side.interval.note)
    if correction is not None and correction.among > 1:
        lines.append(str(correction))
    version = "" if side.version is None else f"version {side.version}, "
    lines.append(f"{version}run {side.run_id[:8]}" if side.run_id else "hand-made YAML")
    return "\n".join(lines)


def check_and_report(model: str | None, modality: str | None) -> None:
    """Print for each group whether YAML file, registry and history agree; see `check_consistency`.

    Raises:
        MlprojectError: They do not.
    """
    found = check_consistency(model, modality)
    for name, problems in found.items():
        print(f"{name}: {'; '.join(problems) or 'YAML, registry and history agree'}")
    if not found:
        print("nothing was promoted yet")
    wrong = [name for name, problems in found.items() if problems]
    if wrong:
        raise MlprojectError(
            f"not all agree: {', '.join(wrong)}; {command('promote')} makes them equal where a run allows it"
        )


def check_consistency(model: str | None, modality: str | None) -> dict[str, list[str]]:
    """Check every group that has a YAML file or a champion of this project, without changing anything.

    Returns:
        The problems by the name of the group; an empty list if YAML file, registry and history agree and
        the champion can be loaded.
    """
    groups = _groups_of_files()
    for event in read_history():
        if event.action != "refusal":
            groups.setdefault(event.group.name, event.group)
    for name, tags in champions():
        if PROMOTION_EVENT in tags and MODEL in tags and MODALITY in tags:
            groups.setdefault(name, Group(tags[MODEL], tags[MODALITY]))
    found: dict[str, list[str]] = {}
    for name, known in sorted(groups.items()):
        if isinstance(known, str):
            found[name] = [known]
        elif model in (None, known.model) and modality in (None, known.modality):
            found[name] = _problems(known)
    return found


def _groups_of_files() -> dict[str, Group | str]:
    """Return the group of each YAML file by name, or what is wrong with the file."""
    groups: dict[str, Group | str] = {}
    for path in sorted(best_hparams_folder().glob("[!.]*.yaml")):
        try:
            config = Config.from_file(path)
            group = Group(config.model.name, config.modality)
            groups[path.stem] = group if group.yaml_path == path else f"{path} is of {group.name}"
        except MlprojectError as error:
            groups[path.stem] = str(error)
    return groups


def _problems(group: Group) -> list[str]:
    try:
        group.check_name()
        state = read_state(group)
    except MlprojectError as error:
        return [str(error)]
    champion, yaml = state.registered.champion, state.yaml
    if champion is None:
        named = state.last_version if yaml is None or yaml.run_id is None else yaml.version
        if named is None:
            return []  # a hand-made YAML file only
        return [f"version {named} was promoted, and the registry has no champion"]
    problems = [*_why_not_loadable(group, champion), *_disagreements(state, champion)]
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


def _why_not_loadable(group: Group, champion: Version) -> list[str]:
    """Return why ``python -m src.predict`` would refuse the champion, as far as known without loading."""
    try:
        if champion.run_id is None:
            raise ClaimError("it was registered manually without a run, so its settings are unknown")
        with tempfile.TemporaryDirectory(prefix="promote-") as folder:
            read_config(read_run(champion.run_id), Path(folder))
        check_model_files(champion.source)
    except MlprojectError as error:
        return [
            f"version {champion.number}, the champion, cannot be used: {error}; or {command('promote')} "
            f"--rollback --model {group.model} --modality {group.modality} puts the version before it back"
        ]
    return []


def _disagreements(state: State, champion: Version) -> list[str]:
    yaml, event, problems = state.yaml, event_of(champion), list[str]()
    path = state.group.yaml_path
    if ROLLED_BACK_TO in champion.tags:
        problems.append(f"version {champion.number} was rolled back and still is the champion")
    if yaml is None:
        problems.append(f"{path} is missing; the champion is version {champion.number}")
    elif yaml.run_id is None:
        problems.append(f"{path} is hand-made, the champion is version {champion.number}")
    elif (yaml.version, yaml.run_id) != (champion.number, champion.run_id):
        run = "no run" if champion.run_id is None else f"run {champion.run_id}"
        problems.append(
            f"{path} names version {yaml.version} of run {yaml.run_id}, "
            f"the champion is version {champion.number} of {run}"
        )
    elif yaml.sha256 != champion.tags.get(YAML_SHA256):
        problems.append(f"{path} was changed after it was written")
    if event is None:
        problems.append(f"version {champion.number} was made champion by somebody else")
    elif state.registered.aliases.get(PREVIOUS) != if_exists(state.registered, event.previous_version):
        problems.append(f"the alias previous does not point to version {event.previous_version}")
    return problems
