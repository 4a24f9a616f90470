"""The promotion workflow: for each group select the best run, verify, register, publish, and report."""

import tempfile
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ClaimError, MlprojectError, TrackingError, UserError
from ..evaluation.auc import Difference
from ..tracking.queries import count_runs, find_candidates
from ..tracking.store import shown_uri
from ..tracking.stored_run import StoredRun, read_run
from . import history
from .evidence import Correction, correct, difference, verify, with_evidence
from .history import Event, Group
from .publish import register_champion, restore, writing
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
from .state import Contender, State, find_champion, is_consistent, read_state, unmanaged_yaml


@dataclass(frozen=True)
class Decision:
    """What to do for one group, and the facts behind it.

    Attributes:
        state: What the group has now.
        selection: The runs that compete.
        verdict: What happens to the best run.
        reason: Why.
        champion: What a candidate must beat.
        candidate: The best run, or the runner-up if the best run is the champion.
        difference: Candidate minus champion.
        runs_since: How many runs competed since the champion was promoted.
    """

    state: State
    selection: Selection
    verdict: Verdict
    reason: str
    champion: Contender | None
    candidate: Contender | None
    difference: Difference | None
    runs_since: int

    @property
    def best(self) -> StoredRun | None:
        """Return the run that the verdict is about, None if no comparable run is left."""
        return self.selection.ranked[0] if self.selection.ranked else None

    @property
    def is_consistent(self) -> bool:
        """Return whether YAML file, registry and history agree on the champion, or there is none."""
        return self.champion is None or is_consistent(self.state, self.champion)


@dataclass(frozen=True)
class Result:
    """Result for one group.

    Attributes:
        group: The group.
        verdict: What was done, or would be done without a dry run.
        reason: Why, for the user.
        decision: The decision, None if none was possible.
        unverified: Why better runs could not be verified.
        correction: Of the promoted run's val AUC, None if nothing was promoted or it is not known.
    """

    group: Group
    verdict: Verdict
    reason: str
    decision: Decision | None = None
    unverified: tuple[str, ...] = ()
    correction: Correction | None = None


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
        if decision.verdict is Verdict.KEEP and decision.is_consistent:  # nothing to write
            return Result(group, decision.verdict, decision.reason, decision)
        with nullcontext() if request.dry_run else writing():
            return _promote_verified(group, candidates, request, folder)
    except (MlprojectError, OSError) as error:
        return Result(group, Verdict.FAIL, str(error))


def _promote_verified(group: Group, candidates: list[StoredRun], request: Request, folder: Path) -> Result:
    """Repeat the decision until its run is verified and no other process has promoted in the meantime."""
    unverified: dict[str, str] = {}
    while True:
        decision = _decide(group, candidates, request, folder, unverified)
        best, verified = decision.best, None
        if best is not None and decision.verdict is Verdict.PROMOTE and request.rules.verify:
            try:
                verified = verify(read_run(best.run_id), folder)
            except ClaimError as error:
                unverified[best.run_id] = str(error)
                _record_refusal(best, decision, error.public, request)
                continue
        # A process on another host may have promoted during the verification.
        if read_state(group) == decision.state:
            result = _apply(decision, verified, request, folder)
            return replace(result, unverified=tuple(unverified.values()))


def _decide(
    group: Group,
    candidates: list[StoredRun],
    request: Request,
    folder: Path,
    unverified: Collection[str] = (),
) -> Decision:
    """Decide on one group, without writing anything.

    Raises:
        ConfigError: The group's YAML file is damaged.
        TrackingError: The registry or the best run cannot be read.
    """
    state = read_state(group)
    champion = find_champion(state)
    selection = select(candidates, request, state, unverified)
    since = competed_since(selection.comparable, champion, state)
    if champion is not None and champion.run_id is not None:
        with suppress(TrackingError):  # the run was deleted; the version and its numbers stay
            champion = with_evidence(champion, read_run(champion.run_id), folder)
    if not selection.ranked:
        return Decision(state, selection, *nothing_left(selection), champion, None, None, since)
    rival = next((run for run in selection.ranked if not is_same(run, champion)), None)
    candidate = None
    if rival is not None:
        candidate = with_evidence(Contender(rival.val_auc, rival.run_id), read_run(rival.run_id), folder)
    found = difference(candidate, champion) if candidate and champion else None
    verdict, reason = judge(selection.ranked[0], champion, found, request.rules, runs=since)
    return Decision(state, selection, verdict, reason, champion, candidate, found, since)


def _apply(decision: Decision, verified: str | None, request: Request, folder: Path) -> Result:
    """Register and publish a decision; in a dry run, return only what would be done."""
    group, best, correction = decision.state.group, decision.best, None
    notes = [decision.reason, *([f"verified by {verified}"] if verified else [])]
    if not decision.is_consistent:
        notes.append(_reconcile(decision, request, folder))
    if best is not None and decision.verdict is Verdict.REFUSE:
        _record_refusal(best, decision, decision.reason, request)
    elif best is not None and decision.verdict is Verdict.PROMOTE:
        event = replace(_promotion_event(best, decision, request), verified=verified)
        correction = correct(best, decision.selection.ranked, folder)
        if correction is not None:
            event = replace(
                event,
                val_auc_corrected=correction.auc,
                chosen_among=correction.among,
                corrected_with=correction.used,
            )
        if not request.dry_run:
            number = register_champion(read_run(best.run_id), read_state(group), event, folder)
            notes.insert(0, f"version {number}")
    return Result(group, decision.verdict, "; ".join(notes), decision, correction=correction)


def _reconcile(decision: Decision, request: Request, folder: Path) -> str:
    """Restore what differs from the champion, and return what was done; it may fail before a promotion.

    A champion that was set by hand is verified like any run that is promoted.
    """
    state, champion = decision.state, decision.champion
    assert champion is not None
    try:
        restore(state, champion, folder, verify_new=request.rules.verify, dry_run=request.dry_run)
    except MlprojectError as error:
        if decision.verdict is not Verdict.PROMOTE:
            raise
        return f"the previous champion could not be restored ({error})"
    return "YAML, registry and history are made equal"


def _record_refusal(best: StoredRun, decision: Decision, reason: str, request: Request) -> None:
    if not request.dry_run:
        event = _promotion_event(best, decision, request)
        history.append(replace(event, action="refusal", reason=reason, replaced_text=None))


def _promotion_event(best: StoredRun, decision: Decision, request: Request) -> Event:
    """Return the event of promoting the best run, as far as it is known before."""
    champion, candidate, found = decision.champion, decision.candidate, decision.difference
    event = replace(
        Event.of("promotion", decision.state.group, best, decision.reason),
        val_auc=best.val_auc,
        runs_since=decision.runs_since,
        runs=len(decision.selection.comparable),
        left_out=len(decision.selection.left_out[OTHER_DATA]),
        forced=request.rules.force,
        new_data=request.rules.new_data,
        replaced_text=unmanaged_yaml(decision.state),
    )
    if champion is not None:
        event = replace(
            event,
            replaced_version=champion.version,
            replaced_run_id=champion.run_id,
            replaced_val_auc=champion.val_auc,
        )
    if candidate is not None and candidate.run_id == best.run_id:
        event = replace(event, val_auc_low=candidate.low, val_auc_high=candidate.high)
    if found is not None:
        event = replace(event, difference=found.value, p_value=found.p)
    return event
