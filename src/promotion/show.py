"""A promotion as a person sees it: a table, and a sentence for each group."""

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import MlprojectError
from ..utils.progress import is_interactive
from .correction import Correction, correction_of
from .decide import Decision, Request
from .evidence import Standing
from .flow import Outcome, promote
from .judge import adjusted
from .state import entry_of

_WIDE = 160  # a pipe has no width, and a wrapped number is no number


def promote_and_show(request: Request) -> None:
    """Promotes, prints the table, then why each group was decided as it was.

    Raises:
        MlprojectError: Some group could not be decided or written, or a run's claim does not hold.
    """
    outcomes = promote(request)
    console = Console(width=None if is_interactive() else _WIDE, highlight=False)
    table = Table("group", "champion", "challenger", "difference", "p", "runs", "left out", "decision")
    for outcome in outcomes:
        table.add_row(*map(escape, _row(outcome, dry_run=request.dry_run)))
    console.print(table)
    for outcome in outcomes:
        for line in (*(f"refused: {why}" for why in outcome.refused), outcome.reason):
            console.print(f"{outcome.group.name}: {line}", soft_wrap=True, markup=False)
    if request.dry_run:
        console.print("dry run: nothing was changed")
    alarming = [outcome.group.name for outcome in outcomes if outcome.is_alarming]
    if alarming:
        raise MlprojectError(f"look at {', '.join(alarming)}: the lines above say what is wrong there")


def _row(outcome: Outcome, *, dry_run: bool) -> list[str]:
    decision, action = outcome.decision, outcome.action
    shown = f"would be {action}" if dry_run and action in ("promoted", "refused") else action
    if decision is None:
        return [outcome.group.name, "", "", "", "", "", "", shown]
    found, counts = decision.difference, decision.counts
    left_out = [
        f"{count} {what}"
        for count, what in (
            (counts.other_data, "other data"),
            (counts.rolled_back, "rolled back"),
            (counts.leaky, "with a leak"),
        )
        if count
    ]
    return [
        outcome.group.name,
        _side(decision.champion, _held(decision)),
        _side(decision.challenger, outcome.correction),
        "" if found is None else f"{found.value:+.4f}",
        "" if found is None or math.isnan(found.p) else _p(found.p, counts.since),
        str(counts.comparable),
        "\n".join(left_out),
        shown,
    ]


def _held(decision: Decision) -> Correction | None:
    """What was recorded when the champion was promoted."""
    number = None if decision.incumbent is None else decision.incumbent.version
    version = decision.state.registered.versions.get(number or 0)
    return None if version is None else correction_of(entry_of(version))


def _p(p: float, runs: int) -> str:
    """The p value of the pair, and below it what it is worth for the best of several runs."""
    return f"{p:.3g}" if runs == 1 else f"{p:.3g}\n{adjusted(p, runs):.3g} for the best of {runs}"


def _side(side: Standing | None, correction: Correction | None) -> str:
    """AUC, interval and how it was made, the corrected AUC, and whose it is."""
    if side is None:
        return "none"
    lines = [f"{side.val_auc:.4f}"]
    if side.interval is not None and not math.isnan(side.interval.low):
        lines[0] += f" ({side.interval.low:.4f} to {side.interval.high:.4f})"
        lines.append(f"95 % {side.interval.method}")
    elif side.interval is not None:
        lines.append(side.interval.method)
    if correction is not None and correction.among > 1:
        lines.append(str(correction))
    version = "" if side.version is None else f"version {side.version}, "
    lines.append(f"{version}run {side.run_id[:8]}" if side.run_id else "hand-made YAML")
    return "\n".join(lines)
