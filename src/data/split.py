"""Split samples into train, val and test by patient: stratified, seeded, independent of file order."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..demo.demo import DEMO_NAME
from ..errors import DataError
from ..utils.config import DataConfig
from .image_array import ImageArray
from .image_similarity import find_components
from .join_modalities import Records, StepResult, text_column

_TOLERANCE = 0.05
_MOST_PARTS = 100
_ARRANGEMENTS = 1000


def merge_groups(groups: Sequence[str], links: Sequence[tuple[str, str]]) -> list[str]:
    """Merge groups that are linked, directly or through others; each is named by its first name in order."""
    from scipy.cluster.hierarchy import DisjointSet

    if not links:
        return list(groups)
    merged = DisjointSet(groups)
    for one, other in links:
        merged.merge(one, other)
    first = {name: min(names) for names in merged.subsets() for name in names}
    return [first[group] for group in groups]


def split_by_image(
    groups: Sequence[str], classes: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Assign every sample to train, val or test so that each split has the same share of each class.

    `StratifiedGroupKFold` divides the samples into the fewest parts of which whole numbers come within 5 %
    of both fractions (at most 100 parts, and no more than groups); the seed chooses the parts of each split.

    Args:
        groups: Group (patient) of each sample; samples of one group stay together.
        classes: Class of each sample.
        val_fraction: Share of the samples that go to val.
        test_fraction: Share that goes to test; 0 makes no test split.
        seed: Seed; the split does not depend on the order of the samples.

    Returns:
        One of ``train``, ``val``, ``test`` per sample.

    Raises:
        DataError: A class has too few groups to be in every split, or the fractions leave no training data.
    """
    sides = _sides(val_fraction, test_fraction)
    for name, count in sorted(Counter(name for _, name in set(zip(groups, classes, strict=True))).items()):
        if count <= len(sides):
            raise _too_few(name, count, sides, len(set(classes)))
    group_count = len(set(groups))
    number, counts = _count_parts(sides, min(group_count, max(Counter(classes).values())))
    names, labels = np.unique(np.array(classes, dtype=object), return_inverse=True)
    part = _divide(groups, labels.tolist(), number, seed, is_grouped=group_count < len(groups))
    has_class = np.zeros((number, len(names)), bool)
    has_class[part, labels] = True
    # Shuffled, because the first parts get the largest groups.
    random = np.random.default_rng(seed)
    arranged = np.repeat(["train", *counts], [number - sum(counts.values()), *counts.values()])
    for _ in range(_ARRANGEMENTS):
        random.shuffle(arranged)
        if all(has_class[arranged == side].any(axis=0).all() for side in ("train", *counts)):
            return [str(side) for side in arranged[part]]
    raise DataError(
        f"no split was found that has every class in train, {' and '.join(sides)}; add patients of the "
        "rarest class, change data.split_seed, or set data.stratify=patients"
    )


def split_by_group(
    groups: Sequence[str], classes: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> list[str]:
    """Assign every sample to train, val or test; arguments and result are those of `split_by_image`.

    Groups are sorted, shuffled class by class, and distributed by the fractions, which are shares of a
    class's groups here. A group with several classes counts for the rarest of them, so that a rare class
    reaches every split.

    Raises:
        DataError: A class has too few groups for all splits, or the fractions leave no training data.
    """
    sides = _sides(val_fraction, test_fraction)
    assigned: dict[str, str] = {}
    for number, (name, members) in enumerate(sorted(_groups_by_class(groups, classes).items())):
        counts = {side: max(1, round(share * len(members))) for side, share in sides.items()}
        if sum(counts.values()) >= len(members):
            raise _too_few(name, len(members), sides, len(set(classes)))
        members.sort()
        shuffled = np.random.default_rng([seed, number]).permutation(len(members)).tolist()
        order = [side for side, count in counts.items() for _ in range(count)]
        order += ["train"] * (len(members) - len(order))
        assigned.update(zip(map(members.__getitem__, shuffled), order, strict=True))
    return [assigned[group] for group in groups]


def split_by_fold(
    groups: Sequence[str], labels: Sequence[int], *, folds: int, fold: int, seed: int
) -> list[str]:
    """Assign every sample of one fold to val and all others to train; samples of one group stay together.

    The folds are stratified by ``labels`` and shuffled by ``seed``; they do not depend on the order of
    samples.

    Raises:
        DataError: Fewer groups than folds.
    """
    if len(set(groups)) < folds:
        raise DataError(f"data.folds: {folds} folds need as many patients, found {len(set(groups))}")
    return ["val" if part == fold else "train" for part in _divide(groups, labels, folds, seed).tolist()]


def _divide(
    groups: Sequence[str], labels: Sequence[int], parts: int, seed: int, *, is_grouped: bool = True
) -> NDArray[np.int64]:
    """Return the part of each sample; groups stay together, classes are balanced over the parts."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    order = sorted(range(len(groups)), key=lambda place: (groups[place], labels[place]))
    # StratifiedGroupKFold takes seconds for 100,000 groups.
    kind = StratifiedGroupKFold if is_grouped else StratifiedKFold
    splitter = kind(parts, shuffle=True, random_state=seed)
    part = np.zeros(len(groups), np.int64)
    with warnings.catch_warnings():
        # A class with fewer samples than parts is missing from some; that is refused where it is found.
        warnings.simplefilter("ignore", UserWarning)
        found = splitter.split(order, [labels[place] for place in order], [groups[place] for place in order])
        for number, (_, chosen) in enumerate(found):
            part[np.array(order)[chosen]] = number
    return part


def _sides(val_fraction: float, test_fraction: float) -> dict[str, float]:
    if val_fraction + test_fraction >= 1:
        raise DataError(
            f"data.val_fraction {val_fraction} + data.test_fraction {test_fraction} leave nothing to train on"
        )
    shares = {"val": val_fraction, "test": test_fraction}
    return {name: share for name, share in shares.items() if share > 0}


def _too_few(name: str, patients: int, sides: Iterable[str], classes: int) -> DataError:
    needed = ["train", *sides]
    return DataError(
        f"class {name} has {patients} patients, too few for {', '.join(needed[:-1])} and {needed[-1]}: "
        f"{len(needed)} at least; add patients, or set data.test_fraction=0"
        + "; if this is a folder of a patient, put it into a folder of its class"
        * (classes > 2)
    )


def _count_parts(sides: dict[str, float], groups: int) -> tuple[int, dict[str, int]]:
    """Return the smallest number of equal parts that fits the fractions, and the parts of val and test."""
    most = min(_MOST_PARTS, groups)
    for number in range(2, most + 1):
        counts = {side: max(1, round(share * number)) for side, share in sides.items()}
        fits = all(abs(counts[side] / number - share) <= _TOLERANCE * share for side, share in sides.items())
        if sum(counts.values()) < number and (fits or number == most):
            return number, counts
    raise DataError(
        f"{groups} patients are too few for data.val_fraction and data.test_fraction as they are; add "
        "patients, or change the fractions"
    )


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


def assign_splits(
    records: Records, arrays: Sequence[ImageArray], classes: tuple[str, ...], config: DataConfig
) -> StepResult:
    """Assign the records to splits; cross-validation divides all but test."""
    by_patient = config.stratify == "patients" or (config.stratify == "auto" and config.root_dir == DEMO_NAME)
    # Splits of earlier versions, which recorded runs depend on, kept only images without patient together.
    groups = records.groups if by_patient else merge_groups(records.groups, _links(records))
    notes = []
    if config.on_near_duplicate == "group":
        if records.splits[0] and config.folds is None:
            raise DataError(
                "data.on_near_duplicate=group needs a split made here, and the data define their own; choose "
                "drop, or remove their split"
            )
        groups, note = _group_near_duplicates(records, groups, arrays, config.near_duplicate_threshold)
        notes.append(note)
    if not records.splits[0]:  # the source has no split of its own
        split = split_by_group if by_patient else split_by_image
        sides = split(
            groups,
            [classes[label] for label in records.labels.tolist()],
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            seed=config.split_seed,
        )
        records = replace(records, splits=text_column(sides))
    if config.folds is None:
        return StepResult(records, notes)
    is_rest = records.splits != "test"
    rest, rest_groups = records.take(is_rest), text_column(groups)[is_rest].tolist()
    sides = split_by_fold(
        rest_groups, rest.labels.tolist(), folds=config.folds, fold=config.fold, seed=config.split_seed
    )
    return StepResult(replace(rest, splits=text_column(sides)), notes)


def _group_near_duplicates(
    records: Records, groups: list[str], arrays: Sequence[ImageArray], threshold: float
) -> tuple[list[str], str]:
    """Merge the groups of near-duplicates; return the groups and a sentence for the user."""
    component = find_components(records, arrays, threshold)
    _, first = np.unique(component, return_index=True)
    links = [(groups[i], groups[first[c]]) for i, c in enumerate(component.tolist())]
    sizes = np.bincount(component)
    alike = sizes[sizes > 1]
    return merge_groups(groups, links), (
        f"data.on_near_duplicate=group: {alike.sum()} of {len(records)} images are near-duplicates of others "
        f"and form {len(alike)} groups, the largest of {sizes.max()} images; each stays in one split "
        f"(thumbnail correlation above {threshold:g})"
    )


def _links(records: Records) -> list[tuple[str, str]]:
    """Return the pairs of groups that have an image in common."""
    first: dict[str, str] = {}
    return [
        (group, other)
        for shas in records.shas.T.tolist()
        for group, sha in zip(records.groups, shas, strict=True)
        if (other := first.setdefault(sha, group)) != group
    ]
