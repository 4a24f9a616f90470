"""A split by patient: stratified by class, seeded, the same whatever the order of files on disk."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from src.errors import DataError


def split_by_group(
    groups: Sequence[str], classes: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Assigns every sample to train, val or test; samples of one group stay together.

    Groups are sorted, then shuffled class by class, and dealt by the fractions. A group with several
    classes is dealt with the rarest of them, so that a rare class reaches every side.

    Args:
        groups: Group (patient) of each sample.
        classes: Class of each sample.
        val_fraction: Share of a class's groups that go to val, at least one.
        test_fraction: Share that goes to test; 0 makes no test split.
        seed: Seed of the shuffle.

    Returns:
        One of ``train``, ``val``, ``test`` per sample.

    Raises:
        DataError: A class has too few groups to be on every side, or the fractions leave no training.
    """
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"data.val_fraction {val_fraction} + data.test_fraction {test_fraction} leave nothing to train on"
        )
    shares = {"val": val_fraction, "test": test_fraction}
    sides = {name: share for name, share in shares.items() if share > 0}
    assigned: dict[str, str] = {}
    for number, (name, members) in enumerate(sorted(_groups_by_class(groups, classes).items())):
        counts = {side: max(1, round(share * len(members))) for side, share in sides.items()}
        if sum(counts.values()) >= len(members):
            may_be_patients = len(set(classes)) > 2
            raise DataError(
                f"class {name} has {len(members)} patients, too few for train, {' and '.join(sides)}: "
                f"{len(sides) + 1} at least; add patients, or set data.test_fraction=0"
                + "; if this is a folder of a patient, put it into a folder of its class"
                * may_be_patients
            )
        members.sort()
        shuffled = np.random.default_rng([seed, number]).permutation(len(members)).tolist()
        order = [side for side, count in counts.items() for _ in range(count)]
        order += ["train"] * (len(members) - len(order))
        assigned.update(zip(map(members.__getitem__, shuffled), order, strict=True))
    return [assigned[group] for group in groups]


def split_by_fold(
    groups: Sequence[str], labels: Sequence[int], *, folds: int, fold: int, seed: int
) -> list[str]:
    """Assigns every sample to train, or to val where it is in a fold; samples of one group stay together.

    Args:
        groups: Group (patient) of each sample.
        labels: Class index of each sample, by which the folds are stratified.
        folds: How many.
        fold: Which one is val.
        seed: Seed of the shuffle; the folds depend on neither the order of samples nor ``fold``.

    Returns:
        ``train`` or ``val`` per sample.

    Raises:
        DataError: There are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if len(set(groups)) < folds:
        raise DataError(f"data.folds: {folds} folds need as many patients, and there are {len(set(groups))}")
    order = sorted(range(len(groups)), key=lambda place: (groups[place], labels[place]))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer samples than folds is missing from some; that is refused where it is found.
        warnings.simplefilter("ignore", UserWarning)
        found = list(
            splitter.split(order, [labels[place] for place in order], [groups[place] for place in order])
        )
    chosen = {order[place] for place in found[fold][1]}
    return ["val" if place in chosen else "train" for place in range(len(groups))]


def _groups_by_class(groups: Sequence[str], classes: Sequence[str]) -> dict[str, list[str]]:
    rarity = {name: (count, name) for name, count in Counter(classes).items()}
    rarest: dict[str, str] = {}
    for group, name in zip(groups, classes, strict=True):
        if rarest.setdefault(group, name) != name:
            rarest[group] = min(rarest[group], name, key=rarity.__getitem__)
    members: dict[str, list[str]] = defaultdict(list)
    for group, name in rarest.items():
        members[name].append(group)
    return members
