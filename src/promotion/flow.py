"""From the store's runs to a decision for each group, and on to its writing."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import ClaimError, MlprojectError, UserError
from ..tracking.candidates import Candidate, count_runs, find_candidates
from ..tracking.finished_run import read_run
from ..tracking.store import shown_uri
from . import history
from .correction import Correction, correct
from .decide import Decision, Request, decide
from .evidence import verify
from .group import Group
from .history import Entry, now
from .judge import Verdict, pick_fingerprints
from .settle import check_restorable, enthrone, restore, writing
from .state import entry_of, foreign_text, read_state

Action = Literal["promoted", "kept", "refused", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one group.

    Attributes:
        group: The group.
        action: What was done, or in a dry run would be.
        reason: Why, for a person.
        decision: What was decided, None where nothing could be.
        refused: What is wrong with better runs that do not keep what they claim.
        correction: Of the promoted run's val AUC, None where nothing was promoted or it cannot be had.
    """

    group: Group
    action: Action
    reason: str
    decision: Decision | None = None
    refused: tuple[str, ...] = ()
    correction: Correction | None = None

    @property
    def is_alarming(self) -> bool:
        """Whether a person has to look at it."""
        return self.action == "failed" or bool(self.refused)


def promote(request: Request) -> list[Outcome]:
    """Decides every group that the request names, and writes what it decides.

    Raises:
        UserError: There is no candidate at all.
        StoreError: The store cannot be read.
    """
    groups = _groups(request)
    with tempfile.TemporaryDirectory(prefix="promote-") as folder:
        return [_outcome(group, groups[group], request, Path(folder)) for group in sorted(groups)]


def _groups(request: Request) -> dict[Group, list[Candidate]]:
    groups: dict[Group, list[Candidate]] = {}
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
        there = ", ".join(group.name for group in sorted(groups))
        raise UserError(
            f"{shown_uri()} holds {count_runs()} runs and none that can be promoted"
            + (f" as asked; there are finished runs of {there}" if there else "")
            + "; a candidate is a FINISHED training run with a best_val_auc and the tags model, modality, "
            "data.fingerprint and split.fingerprint"
        )
    return chosen


def _outcome(group: Group, candidates: list[Candidate], request: Request, folder: Path) -> Outcome:
    """One group's failure does not stop the others."""
    try:
        group.check_name()
        return _settle(group, candidates, request, folder)
    except (MlprojectError, OSError) as error:
        return Outcome(group, "failed", str(error))


def _settle(group: Group, candidates: list[Candidate], request: Request, folder: Path) -> Outcome:
    decision = decide(group, candidates, request, folder)
    if decision.is_idle:
        return Outcome(group, "kept", decision.reason, decision)
    if request.dry_run:
        return _settle_verified(group, candidates, request, folder)
    with writing():
        return _settle_verified(group, candidates, request, folder)


def _settle_verified(group: Group, candidates: list[Candidate], request: Request, folder: Path) -> Outcome:
    """Decides until the best run keeps what it claims, and nobody else has written meanwhile."""
    refused: dict[str, str] = {}
    while True:
        decision = decide(group, candidates, request, folder, frozenset(refused))
        verified = None
        try:
            verified = _verify(decision, request, folder)
        except ClaimError as error:
            assert decision.best is not None
            refused[decision.best.run_id] = str(error)
            draft = replace(_draft(group, decision.best, decision, request), reason=error.public)
            _note_refusal(draft, request)
            continue
        # On another host somebody may have promoted while this one verified.
        if read_state(group) == decision.state:
            outcome = _carry_out(group, decision, verified, request, folder)
            return replace(outcome, refused=tuple(refused.values()))


def _verify(decision: Decision, request: Request, folder: Path) -> str | None:
    """How the run's claim was verified, None where it was not looked at."""
    if decision.best is None or decision.verdict is not Verdict.PROMOTE or not request.rules.verify:
        return None
    return verify(read_run(decision.best.run_id), folder)


def _carry_out(
    group: Group, decision: Decision, verified: str | None, request: Request, folder: Path
) -> Outcome:
    """Writes a decision, or, in a dry run, only says what would come of it."""
    notes = [decision.reason, *([f"verified by {verified}"] if verified else [])]
    if not decision.is_settled:
        notes.append(_make_equal(group, decision, request, folder))
    if decision.best is None or decision.verdict is Verdict.KEEP:
        action: Action = "refused" if decision.verdict is Verdict.REFUSE else "kept"
        return Outcome(group, action, "; ".join(notes), decision)
    draft = _draft(group, decision.best, decision, request)
    if decision.verdict is Verdict.REFUSE:
        _note_refusal(draft, request)
        return Outcome(group, "refused", "; ".join(notes), decision)
    found = correct(decision.best, decision.competitors, folder)
    if not request.dry_run:
        draft = replace(draft, verified=verified)
        if found is not None:
            draft = replace(
                draft, val_auc_corrected=found.auc, chosen_among=found.among, corrected_with=found.used
            )
        number = enthrone(read_run(decision.best.run_id), group, read_state(group), draft, folder)
        notes.insert(0, f"version {number}")
    return Outcome(group, "promoted", "; ".join(notes), decision, correction=found)


def _make_equal(group: Group, decision: Decision, request: Request, folder: Path) -> str:
    """Restores what differs from the incumbent; where it is replaced anyway, that may fail.

    What somebody else made champion is verified like any run that is promoted.
    """
    incumbent = decision.incumbent
    assert incumbent is not None
    version = decision.state.registered.versions.get(incumbent.version or 0)
    is_new = version is None or entry_of(version) is None
    try:
        run, _ = check_restorable(group, incumbent, folder)
        if is_new and request.rules.verify:
            verify(run, folder)
        if not request.dry_run:
            restore(group, decision.state, incumbent, folder)
    except MlprojectError as error:
        if decision.verdict is not Verdict.PROMOTE:
            raise
        return f"the champion before could not be restored ({error})"
    return "YAML, registry and history are made equal"


def _note_refusal(draft: Entry, request: Request) -> None:
    if not request.dry_run:
        history.append(replace(draft, action="refusal", replaced_text=None))


def _draft(group: Group, best: Candidate, decision: Decision, request: Request) -> Entry:
    """The event of promoting the best run, as far as it is known before it happens."""
    side, incumbent, found = decision.challenger, decision.incumbent, decision.difference
    if side is not None and side.run_id != best.run_id:
        side = None
    replaced = None if incumbent is None else incumbent.version
    return Entry(
        now(),
        "promotion",
        group.model,
        group.modality,
        best.run_id,
        decision.reason,
        replaced_version=replaced,
        replaced_run_id=None if incumbent is None else incumbent.run_id,
        val_auc=best.val_auc,
        val_auc_low=None if side is None else side.low,
        val_auc_high=None if side is None else side.high,
        replaced_val_auc=None if incumbent is None else incumbent.val_auc,
        difference=None if found is None else found.value,
        p_value=None if found is None else found.p,
        runs_since=decision.counts.since,
        runs=decision.counts.comparable,
        left_out=decision.counts.other_data,
        data_fingerprint=best.data_fingerprint,
        split_fingerprint=best.split_fingerprint,
        forced=request.rules.force,
        new_data=request.rules.new_data,
        replaced_text=foreign_text(decision.state),
    )
