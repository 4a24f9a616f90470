"""Decides one group: which run is the best, what holds now, what speaks for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..errors import TrackingError
from ..evaluation.auc import Difference
from ..tracking.candidates import Candidate
from ..tracking.finished_run import read_run
from .evidence import Standing, difference, stand
from .group import Group
from .judge import Rules, Verdict, is_same, judge, nothing_left, pick_fingerprints, rank
from .state import Incumbent, State, find_incumbent, is_settled, read_state

_NO_RULES = Rules()


@dataclass(frozen=True)
class Request:
    """What the user wants promoted, and how.

    Attributes:
        rules: What a run must show.
        model: Only groups of this model.
        modality: Only groups of this modality.
        experiment: Only runs of this experiment.
        data_fingerprint: Compare on the data whose fingerprint starts like this, not on the newest.
        dry_run: Decide, verify, and write nothing.
    """

    rules: Rules = _NO_RULES
    model: str | None = None
    modality: str | None = None
    experiment: str | None = None
    data_fingerprint: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Counts:
    """How many runs of a group there are.

    Attributes:
        comparable: Runs on the data that the group is compared on.
        other_data: Runs that saw other data, left out.
        rolled_back: Comparable runs that were rolled back, left out.
        leaky: Runs that were allowed a leak between splits, left out.
        since: Comparable runs that competed since the champion was promoted.
    """

    comparable: int = 0
    other_data: int = 0
    rolled_back: int = 0
    leaky: int = 0
    since: int = 0


@dataclass(frozen=True)
class Decision:
    """What is to be done for one group, and what it was decided on.

    Attributes:
        state: What was there.
        incumbent: What holds.
        best: The run that the verdict is about, None where no comparable run is left.
        verdict: What becomes of it.
        reason: Why.
        champion: The incumbent's side.
        challenger: The best run's side, or the runner-up's where the best is the incumbent.
        difference: Challenger minus champion.
        counts: How many runs there are.
        competitors: The runs that the best was chosen among, itself included.
    """

    state: State
    incumbent: Incumbent | None
    best: Candidate | None
    verdict: Verdict
    reason: str
    champion: Standing | None
    challenger: Standing | None
    difference: Difference | None
    counts: Counts
    competitors: Sequence[Candidate] = ()

    @property
    def is_settled(self) -> bool:
        """Whether YAML, registry and history agree on the incumbent, or nothing holds yet."""
        return self.incumbent is None or is_settled(self.state, self.incumbent)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to write."""
        return self.verdict is Verdict.KEEP and self.is_settled


def decide(
    group: Group,
    candidates: list[Candidate],
    request: Request,
    folder: Path,
    refused: frozenset[str] = frozenset(),
) -> Decision:
    """Decides one group; reads only.

    Args:
        group: The group.
        candidates: All of its runs.
        request: What the user wants.
        folder: For files of a store that is no local folder.
        refused: Runs whose claims do not hold.

    Raises:
        ConfigError: Its YAML is damaged.
        TrackingError: The registry, or the best run, cannot be read.
    """
    state = read_state(group)
    incumbent = find_incumbent(state)
    # Before all else, for the newest of them must not say on which data the others are compared.
    clean = [c for c in candidates if request.rules.force or not c.is_leaky]
    wanted = pick_fingerprints(clean, request.data_fingerprint)
    comparable = [c for c in clean if c.fingerprints == wanted]
    back = frozenset() if request.rules.force else state.taken_back
    allowed = [c for c in comparable if c.run_id not in back | refused]
    rolled_back = sum(c.run_id in back for c in comparable)
    counts = Counts(
        len(comparable),
        len(clean) - len(comparable),
        rolled_back,
        len(candidates) - len(clean),
        competed_since(comparable, incumbent, state),
    )
    champion = None if incumbent is None else _stand_for(incumbent, folder)
    ranked = rank(allowed)
    if not ranked:
        verdict, reason = nothing_left(counts.leaky)
        return Decision(state, incumbent, None, verdict, reason, champion, None, None, counts)
    best = ranked[0]
    rival = next((c for c in ranked if not is_same(c, incumbent)), None)
    challenger = None if rival is None else stand(read_run(rival.run_id), rival.val_auc, None, folder)
    found = difference(challenger, champion) if challenger and champion else None
    is_leaky = champion is not None and champion.is_leaky
    verdict, reason = judge(best, incumbent, found, request.rules, runs=counts.since, is_leaky=is_leaky)
    return Decision(state, incumbent, best, verdict, reason, champion, challenger, found, counts, ranked)


def competed_since(comparable: Sequence[Candidate], incumbent: Incumbent | None, state: State) -> int:
    """Count the runs that a challenger was chosen among, at least one.

    These are the runs that ended after the champion was promoted, or that are more now than were ranked
    then (an older run of an experiment that was left out); all but the champion where its promotion is
    not known.
    """
    run_id = None if incumbent is None else incumbent.run_id
    others = [run for run in comparable if run.run_id != run_id]
    won = state.won.get(run_id or "")
    if won is None:
        return max(len(others), 1)
    promoted = datetime.fromisoformat(won.time).timestamp() * 1000
    ended = sum(run.end_time is None or run.end_time > promoted for run in others)
    return max(ended, len(comparable) - (won.runs or 0), 1)


def _stand_for(incumbent: Incumbent, folder: Path) -> Standing:
    bare = Standing(incumbent.val_auc, incumbent.run_id, incumbent.version, None, None)
    if incumbent.run_id is None:
        return bare
    try:
        return stand(read_run(incumbent.run_id), incumbent.val_auc, incumbent.version, folder)
    except TrackingError:  # the run was deleted; the version and its numbers stay
        return bare
