"""The promotion workflow: for each group select the best run, verify, register, publish, and report."""

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import ClaimError, MlprojectError, TrackingError, UserError
from ..evaluation.auc import Difference
from ..tracking.queries import count_runs, find_candidates
from ..tracking.store import shown_uri
from ..tracking.stored_run import StoredRun, read_run
from . import history
from .evidence import Contender, Correction, contender_of, correct, difference, verify
from .history import Event, Group
from .publish import check_restorable, register_champion, restore, writing
from .select import (
    OTHER_DATA,
    Request,
    Selection,
    Verdict,
    competed_since,
    is_same,
    judge,
    nothing_left,
    pick_fingerprints,
    select,
)
from .state import Incumbent, State, event_of, find_incumbent, is_consistent, read_state, unmanaged_yaml

Action = Literal["promoted", "kept", "refused", "failed"]


@dataclass(frozen=True)
class Decision:
    """What to do for one group, and the facts behind it.

    Attributes:
        state: What the group has now.
        incumbent: What a run must beat.
        selection: The runs that compete.
        verdict: What happens to the best run.
        reason: Why.
        champion: The incumbent's side of the comparison.
        challenger: The best run's side, or the runner-up's if the best run is the incumbent.
        difference: Challenger minus champion.
        runs_since: How many runs competed since the champion was promoted.
    """

    state: State
    incumbent: Incumbent | None
    selection: Selection
    verdict: Verdict
    reason: str
    champion: Contender | None
    challenger: Contender | None
    difference: Difference | None
    runs_since: int

    @property
    def best(self) -> StoredRun | None:
        """Return the run that the verdict is about, None if no comparable run is left."""
        return self.selection.ranked[0] if self.selection.ranked else None

    @property
    def is_consistent(self) -> bool:
        """Return whether YAML file, registry and history agree on the incumbent, or there is none."""
        return self.incumbent is None or is_consistent(self.state, self.incumbent)

    @property
    def changes_nothing(self) -> bool:
        """Return whether there is nothing to write."""
        return self.verdict is Verdict.KEEP and self.is_consistent


@dataclass(frozen=True)
class Result:
    """Result for one group.

    Attributes:
        group: The group.
        action: What was done, or would be done without a dry run.
        reason: Why, for the user.
        decision: The decision, None if none was possible.
        refused: Why better runs could not be verified.
        correction: Of the promoted run's val AUC, None if nothing was promoted or it is not known.
    """

    group: Group
    action: Action
    reason: str
    decision: Decision | None = None
    refused: tuple[str, ...] = ()
    correction: Correction | None = None

    @property
    def needs_attention(self) -> bool:
        """Return whether the user has to look at it."""
        return self.action == "failed" or bool(self.refused)


def promote(request: Request) -> list[Result]:
    """Promote the best run of every requested group.

    Raises:
        UserError: There are no candidates at all.
        StoreError: The store cannot be read.
    """
    groups = _groups(request)
    with tempfile.TemporaryDirectory(prefix="promote-") as folder:
        return [_promote_group(group, groups[group], request, Path(folder)) for group in sorted(groups)]


def _groups(request: Request) -> dict[Group, list[StoredRun]]:
    groups: dict[Group, list[StoredRun]] = {}
    for candidate in find_candidates(request.experiment):
        groups.setdefault(Group(*candidate.group), []).append(candidate)
    chosen = {
        group: runs
        for group, runs in groups.items()
        if request.model in (None, group.model)
        and request.modality in (None, group.modality)
        and pick_fingerprints(runs, request.data_fingerprint) is not None
    }
    if not chosen:
        known = ", ".join(group.name for group in sorted(groups))
        raise UserError(
            f"{shown_uri()} holds {count_runs()} runs and none that can be promoted"
            + (f" as asked; there are finished runs of {known}" if known else "")
            + "; a candidate is a FINISHED training run with a best_val_auc and the tags model, modality, "
            "data.fingerprint and split.fingerprint"
        )
    return chosen


def _promote_group(group: Group, candidates: list[StoredRun], request: Request, folder: Path) -> Result:
    """Promote the best run of one group, whose failure does not stop the others."""
    try:
        group.check_name()
        decision = _decide(group, candidates, request, folder)
        if decision.changes_nothing:
            return Result(group, "kept", decision.reason, decision)
        if request.dry_run:
            return _promote_verified(group, candidates, request, folder)
        with writing():
            return _promote_verified(group, candidates, request, folder)
    except (MlprojectError, OSError) as error:
        return Result(group, "failed", str(error))


def _promote_verified(group: Group, candidates: list[StoredRun], request: Request, folder: Path) -> Result:
    """Repeat the decision until its run is verified and no other process has promoted in the meantime."""
    refused: dict[str, str] = {}
    while True:
        decision = _decide(group, candidates, request, folder, refused)
        try:
            verified = _verify(decision, request, folder)
        except ClaimError as error:
            assert decision.best is not None
            refused[decision.best.run_id] = str(error)
            event = replace(_promotion_event(decision.best, decision, request), reason=error.public)
            _record_refusal(event, request)
            continue
        # A process on another host may have promoted during the verification.
        if read_state(group) == decision.state:
            result = _apply(decision, verified, request, folder)
            return replace(result, refused=tuple(refused.values()))


def _decide(
    group: Group,
    candidates: list[StoredRun],
    request: Request,
    folder: Path,
    refused: Collection[str] = (),
) -> Decision:
    """Decide on one group, without writing anything.

    Args:
        group: The group.
        candidates: All runs of the group.
        request: What the user wants.
        folder: Where to download files to if the store is not a local folder.
        refused: Ids of runs whose val AUC could not be verified.

    Raises:
        ConfigError: The group's YAML file is damaged.
        TrackingError: The registry or the best run cannot be read.
    """
    state = read_state(group)
    incumbent = find_incumbent(state)
    selection = select(candidates, request, state, refused)
    since = competed_since(selection.comparable, incumbent, state)
    champion = None if incumbent is None else _incumbent_side(incumbent, folder)
    if not selection.ranked:
        verdict, reason = nothing_left(selection)
        return Decision(state, incumbent, selection, verdict, reason, champion, None, None, since)
    rival = next((run for run in selection.ranked if not is_same(run, incumbent)), None)
    challenger = None if rival is None else contender_of(read_run(rival.run_id), rival.val_auc, None, folder)
    found = difference(challenger, champion) if challenger and champion else None
    is_leaky = champion is not None and champion.is_leaky
    verdict, reason = judge(
        selection.ranked[0], incumbent, found, request.rules, runs=since, is_leaky=is_leaky
    )
    return Decision(state, incumbent, selection, verdict, reason, champion, challenger, found, since)


def _incumbent_side(incumbent: Incumbent, folder: Path) -> Contender:
    bare = Contender(incumbent.val_auc, incumbent.run_id, incumbent.version, None, None)
    if incumbent.run_id is None:
        return bare
    try:
        return contender_of(read_run(incumbent.run_id), incumbent.val_auc, incumbent.version, folder)
    except TrackingError:  # the run was deleted; the version and its numbers stay
        return bare


def _verify(decision: Decision, request: Request, folder: Path) -> str | None:
    """Verify the run that is to be promoted; return how, None if there is nothing to verify."""
    if decision.best is None or decision.verdict is not Verdict.PROMOTE or not request.rules.verify:
        return None
    return verify(read_run(decision.best.run_id), folder)


def _apply(decision: Decision, verified: str | None, request: Request, folder: Path) -> Result:
    """Register and publish a decision; in a dry run, return only what would be done."""
    group, notes = decision.state.group, [decision.reason, *([f"verified by {verified}"] if verified else [])]
    if not decision.is_consistent:
        notes.append(_reconcile(decision, request, folder))
    if decision.best is None or decision.verdict is Verdict.KEEP:
        action: Action = "refused" if decision.verdict is Verdict.REFUSE else "kept"
        return Result(group, action, "; ".join(notes), decision)
    event = _promotion_event(decision.best, decision, request)
    if decision.verdict is Verdict.REFUSE:
        _record_refusal(event, request)
        return Result(group, "refused", "; ".join(notes), decision)
    found = correct(decision.best, decision.selection.ranked, folder)
    if not request.dry_run:
        event = replace(event, verified=verified)
        if found is not None:
            event = replace(
                event, val_auc_corrected=found.auc, chosen_among=found.among, corrected_with=found.used
            )
        run = read_run(decision.best.run_id)
        number = register_champion(run, read_state(group), event, folder)
        notes.insert(0, f"version {number}")
    return Result(group, "promoted", "; ".join(notes), decision, correction=found)


def _reconcile(decision: Decision, request: Request, folder: Path) -> str:
    """Restore what differs from the incumbent, and return what was done; it may fail before a promotion.

    A champion that was set by hand is verified like any run that is promoted.
    """
    incumbent = decision.incumbent
    assert incumbent is not None
    version = decision.state.registered.versions.get(incumbent.version or 0)
    is_new = version is None or event_of(version) is None
    try:
        run, _ = check_restorable(decision.state.group, incumbent, folder)
        if is_new and request.rules.verify:
            verify(run, folder)
        if not request.dry_run:
            restore(decision.state, incumbent, folder)
    except MlprojectError as error:
        if decision.verdict is not Verdict.PROMOTE:
            raise
        return f"the previous champion could not be restored ({error})"
    return "YAML, registry and history are made equal"


def _record_refusal(event: Event, request: Request) -> None:
    if not request.dry_run:
        history.append(replace(event, action="refusal", replaced_text=None))


def _promotion_event(best: StoredRun, decision: Decision, request: Request) -> Event:
    """Return the event of promoting the best run, as far as it is known before."""
    side, incumbent, found = decision.challenger, decision.incumbent, decision.difference
    if side is not None and side.run_id != best.run_id:
        side = None
    return replace(
        Event.of("promotion", decision.state.group, best, decision.reason),
        replaced_version=None if incumbent is None else incumbent.version,
        replaced_run_id=None if incumbent is None else incumbent.run_id,
        val_auc=best.val_auc,
        val_auc_low=None if side is None else side.low,
        val_auc_high=None if side is None else side.high,
        replaced_val_auc=None if incumbent is None else incumbent.val_auc,
        difference=None if found is None else found.value,
        p_value=None if found is None else found.p,
        runs_since=decision.runs_since,
        runs=len(decision.selection.comparable),
        left_out=decision.selection.count(OTHER_DATA),
        forced=request.rules.force,
        new_data=request.rules.new_data,
        replaced_text=unmanaged_yaml(decision.state),
    )
