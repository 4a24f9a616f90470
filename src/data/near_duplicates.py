"""Near-duplicates: val and test images that look like a training image, found by their thumbnails."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..utils.config import DataConfig
from ..utils.io import atomic_file, file_lock, open_regular, sha256_of_lines
from ..utils.tables import escape_formula
from .arrays import Arrays
from .comparison import Comparison, compare, find_components
from .image_array import ImageArray
from .index import DAMAGED
from .leaks import Checked
from .records import Records
from .split import merge_groups

SECONDS = 60.0
"""Time for a comparison that is only reported; what it leaves out is stated."""

_FORMAT = 1
_COLUMNS = ("split", "image", "training_image", "same_class", "correlation")


def check_near_duplicates(
    records: Records, arrays: Sequence[ImageArray], config: DataConfig, cache_dir: Path
) -> Checked:
    """Compare val and test with training images, and do with near-duplicates what the settings say.

    Args:
        records: All samples, in the order of the fingerprint.
        arrays: The decoded images of each modality.
        config: The data section.
        cache_dir: Folder of the cache; it keeps what was compared, and a table of the pairs.

    Raises:
        DataError: There are near-duplicates and ``data.on_near_duplicate`` is ``error``, or the cache cannot
            be written.
    """
    is_train = records.splits == "train"
    train, held_out = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    folder = cache_dir / "near_duplicates"
    path = folder / f"{_name(records, arrays)[:16]}.npz"
    deadline = time.monotonic() + (SECONDS if config.on_near_duplicate == "report" else np.inf)
    try:
        with file_lock(path.with_suffix(".lock")):
            comparison = _load(path, len(held_out), len(train))
            if not comparison.is_complete and (not comparison.compared or np.isinf(deadline)):
                compare(comparison, records, arrays, deadline=deadline)
                _save(path, vars(comparison))
            is_alike = comparison.held_out > config.near_duplicate_threshold
            if is_alike.any():
                _write_pairs(path.with_suffix(".csv"), records, comparison, is_alike)
    except OSError as error:
        raise DataError(f"{folder}: the comparison of images cannot be saved: {error}") from None
    found = _describe(records.splits[held_out], is_alike, comparison, config)
    return _resolve(records, comparison, config, found=found, pairs=path.with_suffix(".csv"))


def group_near_duplicates(
    records: Records, groups: list[str], arrays: Sequence[ImageArray], threshold: float
) -> tuple[list[str], str]:
    """Merge the groups of near-duplicates, so that a split keeps them together.

    Args:
        records: All samples.
        groups: Group of each.
        arrays: The decoded images of each modality.
        threshold: Correlation above which images are near-duplicates.

    Returns:
        The merged groups, and a sentence for the user.
    """
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


def _name(records: Records, arrays: Sequence[ImageArray]) -> str:
    """Return what names a comparison: the pixels as they are seen, patients and splits."""
    # A decoded array is named by the hash of its images, their window, size and channels.
    files = [f"{_FORMAT}", *(Path(array.file.name).stem for array in arrays)]
    lines = map("{} {} {}".format, records.splits, records.contents, records.patients)
    return sha256_of_lines([*files, sha256_of_lines(lines)])


def _load(path: Path, held_out: int, train: int) -> Comparison:
    empty = Comparison.empty(held_out, train)
    try:
        with open_regular(path) as file:
            stored = Arrays(file)
            arrays: dict[str, Any] = {name: stored[name] for name in vars(empty)}
    except (FileNotFoundError, *DAMAGED):
        return empty
    is_same = all(arrays[name].shape == value.shape for name, value in vars(empty).items())
    return Comparison(**arrays) if is_same else empty


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with atomic_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_pairs(path: Path, records: Records, found: Comparison, is_alike: NDArray[np.bool_]) -> None:
    """Write a table of val and test images that look like a training image, the most alike first."""
    is_train = records.splits == "train"
    train, held_out = records.take(is_train), records.take(~is_train)
    chosen = np.flatnonzero(is_alike)
    chosen = chosen[np.argsort(-found.held_out[chosen], kind="stable")]
    partners = found.partners[chosen]
    rows = zip(
        held_out.splits[chosen],
        map(escape_formula, held_out.keys[chosen]),
        map(escape_formula, train.keys[partners]),
        held_out.labels[chosen] == train.labels[partners],
        map("{:.3f}".format, found.held_out[chosen].clip(0, 1)),
        strict=True,
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
    with atomic_file(path) as file:  # file names may hold bytes that are not valid UTF-8
        file.write(text.getvalue().encode(errors="surrogateescape"))


def _describe(
    splits: NDArray[np.object_], is_alike: NDArray[np.bool_], found: Comparison, config: DataConfig
) -> str:
    """A sentence on what was found and what was not compared; "" if there is nothing to say."""
    threshold, said = config.near_duplicate_threshold, []
    if is_alike.any():
        counts = [
            f"{is_alike[splits == split].sum()} of {(splits == split).sum()} {split} images"
            for split in ("val", "test")
            if (splits == split).any()
        ]
        share = found.share_of_pairs(threshold)
        said += [
            f"near-duplicates: {' and '.join(counts)} look like a training image (thumbnail correlation "
            f"above {threshold:g}, data.near_duplicate_threshold); of random pairs of different patients "
            f"{100 * share:.2g} % do"
        ]
        if (partners := share * len(found.train)) > 1:
            said += [
                f"an image looks like {partners:.0f} training images on average, so most of these are "
                "probably similar and no copies; raise data.near_duplicate_threshold"
            ]
    if not found.is_complete:
        said += [
            f"near-duplicates were looked for in {found.compared} of {len(found.train)} training images, "
            f"chosen at random, within {SECONDS:g} s; data.on_near_duplicate=drop or error compares all"
        ]
    if blank := int(found.numbers[1]):
        said += [f"{blank} images without any contrast cannot be compared"]
    return "; ".join(said)


def _resolve(
    records: Records, comparison: Comparison, config: DataConfig, *, found: str, pairs: Path
) -> Checked:
    """Do with near-duplicates what ``data.on_near_duplicate`` says."""
    threshold = config.near_duplicate_threshold
    count = int((comparison.held_out > threshold).sum())
    counts = {"near_duplicates": count}
    if not count:
        return Checked(records, counts, [found] if found else [])
    found += f"; the pairs are in {pairs}"
    if config.on_near_duplicate == "error":
        raise DataError(
            f"{found}. Correct the split, or choose data.on_near_duplicate=drop or report",
            public=f"{count} val and test images look like a training image (data.on_near_duplicate=error)",
        )
    if config.on_near_duplicate != "drop":
        return Checked(
            records,
            counts,
            [f"{found}; nothing is dropped (data.on_near_duplicate={config.on_near_duplicate})"],
        )
    is_dropped = np.zeros(len(records), bool)
    is_dropped[np.flatnonzero(records.splits == "train")] = comparison.train > threshold
    note = f"{found}; dropped from train: {is_dropped.sum()}; val and test stay"
    return Checked(records.take(~is_dropped), counts, [note])
