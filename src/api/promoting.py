"""Promote from Python."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, MlprojectError
from ..promotion import workflow
from ..promotion.history import Group, best_hparams_folder
from ..promotion.publish import roll_back
from ..promotion.report import check_consistency, print_results
from ..promotion.select import Request, Rules
from ..tracking.registry import read_registered
from ..tracking.store import open_store
from ..utils.output import is_quiet, say
from .call import api_call


@dataclass(frozen=True)
class Promotion:
    """What was decided for one group: the runs of a model on a modality.

    Attributes:
        name: The registered model, such as ``resnet18_A``.
        action: ``promoted``, ``kept`` (the champion stays), ``refused`` or ``failed``; ``rolled back``;
            ``consistent`` or ``inconsistent`` after a check. In a dry run, what would have been done.
        reason: Why.
        version: The champion's version now, None if there is none.
        yaml: The file of the champion's settings and results, None if there is none.
        unverified: Why better runs could not be verified.
    """

    name: str
    action: str
    reason: str
    version: int | None
    yaml: Path | None
    unverified: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """Return the reference of the champion for `load`."""
        return f"models:/{self.name}@champion"


class PromotionError(MlprojectError):
    """A group could not be decided or written, a run not verified, or the state is inconsistent.

    Attributes:
        results: What was decided for each group.
    """

    def __init__(self, message: str, results: list[Promotion]) -> None:
        super().__init__(message)
        self.results = results


def promote(
    model: str | None = None,
    modality: str | None = None,
    *,
    experiment: str | None = None,
    data_fingerprint: str | None = None,
    min_auc: float | None = None,
    significant: float | None = None,
    new_data: bool = False,
    force: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    rollback: bool = False,
    check: bool = False,
    verbose: bool = False,
) -> list[Promotion]:
    """Register the best run of each model and modality, like ``mlproject promote``.

    Args:
        model: Only runs of this model.
        modality: Only runs of this modality.
        experiment: Only runs of this experiment.
        data_fingerprint: Compare on this data (its first digits), not on the newest run's.
        min_auc: Promote nothing below this val AUC.
        significant: Promote only a gain whose p value (paired DeLong test), times the number of runs since
            the champion, is below this level, such as 0.05.
        new_data: Let a run replace a champion that was trained on other data.
        force: Promote the best run, better than the champion or not.
        verify: Load the model to check the run's claim.
        dry_run: Decide, and change nothing.
        rollback: Put the previous version back instead; needs ``model`` and ``modality``.
        check: Check instead whether YAML, registry and history agree; change nothing.
        verbose: Print what the command prints.

    Returns:
        One result per group.

    Raises:
        UserError: The arguments contradict each other, or no run can be promoted.
        PromotionError: At least one group needs attention; its ``results`` have all groups.
    """
    for name, value in (("min_auc", min_auc), ("significant", significant)):
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name}: expected a number between 0 and 1, got {value!r}")
    if rollback and check:
        raise ConfigError("rollback and check exclude each other")
    rules = Rules(min_auc, significant, force, new_data, verify)
    with api_call(verbose=verbose):
        open_store(must_exist=True)
        if check:
            return _check(model, modality)
        if rollback:
            return _roll_back(model, modality, dry_run=dry_run)
        return _promote(Request(rules, model, modality, experiment, data_fingerprint, dry_run))


def _promote(request: Request) -> list[Promotion]:
    found = workflow.promote(request)
    if not is_quiet():
        print_results(found, request)
    results = [_result(one.group.name, one.verdict.value, one.reason, one.unverified) for one in found]
    if alarming := [f"{one.group.name}: {one.reason}" for one in found if one.needs_attention]:
        raise PromotionError(f"needs attention: {'; '.join(alarming)}", results)
    return results


def _result(name: str, action: str, reason: str, unverified: tuple[str, ...] = ()) -> Promotion:
    champion, path = read_registered(name).champion, best_hparams_folder().absolute() / f"{name}.yaml"
    version = None if champion is None else champion.number
    return Promotion(name, action, reason, version, path if path.exists() else None, unverified)


def _check(model: str | None, modality: str | None) -> list[Promotion]:
    found = check_consistency(model, modality)
    results = [
        _result(name, "inconsistent", "; ".join(problems))
        if problems
        else _result(name, "consistent", "YAML, registry and history agree")
        for name, problems in found.items()
    ]
    for result in results:
        say(f"{result.name}: {result.reason}")
    if wrong := [f"{result.name}: {result.reason}" for result in results if result.action == "inconsistent"]:
        raise PromotionError(f"not all agree: {', '.join(wrong)}", results)
    return results


def _roll_back(model: str | None, modality: str | None, *, dry_run: bool) -> list[Promotion]:
    if not (model and modality):
        raise ConfigError("rollback needs model and modality")
    group = Group(model, modality)
    reason = roll_back(group, dry_run=dry_run)
    say(reason)
    return [_result(group.name, "rolled back", reason)]
