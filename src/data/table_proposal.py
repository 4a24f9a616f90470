"""Propose the data section of a config for a table of images."""

from collections import Counter
from os.path import lexists
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..utils.config import Config
from .column_roles import Columns, guess_columns
from .contents import Contents
from .file_checks import check_files
from .folders import NamePatterns
from .image_table import NEEDED, read_table
from .listing import Listing
from .manifest import list_manifest
from .name_checks import hash_spelling
from .problems import Problems, listed
from .proposal import Proposal, counts, is_not_mirrored, tag_of

_RARE = 10  # images; smaller classes cannot be split into train, val and test
_UNCLEAR = frozenset(
    {"unknown", "todo", "unlabeled", "unlabelled", "undefined", "uncertain", "not available"}
)
_NO_LABEL = frozenset({"", "nan", "na", "n/a", "none", "null", "?", "-", "-1", "#n/a"})


def propose_table(path: str, table: Path, contents: Contents) -> Proposal:
    """Describe a table and propose a config.

    Args:
        path: The table as the user has typed it.
        table: The same.
        contents: The files of its folder.

    Raises:
        DataError: The file is not a table.
    """
    columns = guess_columns(table, contents)
    proposal = Proposal(_describe(table, columns, contents))
    missing = [
        what for what, column in (("paths of images", columns.path), ("labels", columns.labels)) if not column
    ]
    if missing:
        proposal.problems.append(
            f"{table}: no column holds {' or '.join(missing)}; the columns are "
            f"{listed([column.name for column in columns.columns], 40)}"
        )
        return proposal
    data = _settings(path, columns, proposal)
    listing = _try(table, data, proposal)
    if listing is None:
        return proposal
    keys = [sample.key for sample in listing.samples]
    present = [key for key in keys if lexists(listing.root / key)]
    if len(present) < len(keys):
        lost = [key for key in keys if not lexists(listing.root / key)]
        proposal.problems.append(
            f"{len(lost)} of {len(keys)} files are missing, and skipped: {listed(lost, 3)}"
        )
    notes, is_broken = check_files(listing.root, present)
    proposal.problems += notes
    if is_broken or len(present) < len(keys):
        data["on_bad_image"] = "skip"
        proposal.comments["on_bad_image"] = ["leaves out files that are missing or cannot be read"]
    if present:
        proposal.data = data
    return proposal


def _describe(table: Path, columns: Columns, contents: Contents) -> list[str]:
    more = "" if columns.is_complete else "more than "
    found = [
        f"{table}: {more}{columns.rows} rows, {len(columns.columns)} columns; {columns.dialect.describe()}",
        f"files beside it: {listed(contents.describe(), 12)}",
    ]
    if columns.path is not None:
        where = f" below {columns.images}" if columns.images else ""
        found.append(f"path: {columns.path.name} ({len(columns.path.filled)} files named{where})")
    for role, column in (
        ("patient", columns.patient),
        ("split", columns.split),
        ("modality", columns.modality),
    ):
        if column is not None:
            values = f"{len(column.filled)} different" if role == "patient" else counts(column.values)
            found.append(f"{role}: {column.name} ({values})")
    if columns.patient is None:
        found.append("patient: no column is named like one; each image counts as a patient of its own")
    found += [f"label, perhaps: {column.name} ({counts(column.values)})" for column in columns.labels[:6]]
    return found


def _settings(path: str, columns: Columns, proposal: Proposal) -> dict[str, Any]:
    """Return the data section without classes, and explain its choices."""
    label, modality, view = columns.labels[0], columns.modality, columns.view
    roles = {"path": columns.path, "label": label, "patient_id": columns.patient, "split": columns.split}
    names = {role: None if column is None else column.name for role, column in roles.items()}
    data: dict[str, Any] = {"root_dir": path, "columns": names | {"modality": None, "image_id": None}}
    if columns.images:
        data["images"] = columns.images
    others = [f"{column.name} ({counts(column.values, 4)})" for column in columns.labels[1:4]]
    proposal.comments["columns"] = [f"other columns that may be the label: {'; '.join(others)}"] * bool(
        others
    )
    tag = "A"
    if modality is not None and modality.filled:
        value, _ = modality.filled.most_common(1)[0]
        tag = tag_of(value)
        if tag == value:
            data["columns"]["modality"] = modality.name
        else:
            data["where"] = {modality.name: [value]}
        if len(modality.filled) > 1:
            proposal.comments["modalities"] = [f"{modality.name}: {counts(modality.values)}"]
    if view is not None:
        where = f"where: {{{view.name}: [{', '.join(list(view.filled)[:2])}]}}"
        proposal.comments.setdefault("modalities", []).append(
            f"{where} would take rows by the column {view.name}: {counts(view.values)}"
        )
    data["modalities"] = [tag]
    if is_not_mirrored(tag):
        data["augment"] = {"horizontal_flip": False}
        proposal.comments["augment"] = [f"{tag}: a mirrored body has its heart on the wrong side"]
    return data


def _try(table: Path, data: dict[str, Any], proposal: Proposal) -> Listing | None:
    """Return the images that training would list, after adding to ``data`` what they need."""
    _group_labels(table, data, proposal)
    for is_last in (False, True):
        try:
            config = Config.from_dict({"data": data}, "the proposed config").data
            listing = list_manifest(table, data["modalities"][0], config, NamePatterns())
        except DataError as error:
            proposal.problems += [str(error)] * (str(error) not in proposal.problems)
            if not is_last:
                data["on_bad_image"] = "skip"
                proposal.comments["on_bad_image"] = ["leaves out rows of one file that contradict each other"]
        else:
            proposal.findings += [*listing.notes, _result(listing)]
            return listing
    del data["on_bad_image"], proposal.comments["on_bad_image"]  # did not help
    proposal.data, proposal.is_ready = data, False
    return None


def _result(listing: Listing) -> str:
    found = Counter(listing.classes[sample.label] for sample in listing.samples)
    patients = {sample.patient for sample in listing.samples} - {None}
    of = f" of {len(patients)} patients" if patients else ""
    return f"the config below takes {len(listing.samples)} images{of}: {counts(found, 20)}"


def _group_labels(table: Path, data: dict[str, Any], proposal: Proposal) -> None:
    """Add ``classes`` if some labels are rare, unclear, or spelled in several ways."""
    config = Config.from_dict({"data": data}, "the proposed config").data
    found = read_table(table, config, Problems(str(table)), NEEDED[:2])
    tag, of_all = data["modalities"][0], found.lines
    lines = [line for line in of_all if line.cells.get("modality", tag) == tag]
    images = Counter(line.cells["label"] for line in lines)
    groups: dict[str, list[str]] = {}
    for label, _ in images.most_common():
        if label.casefold() not in _NO_LABEL | _UNCLEAR:
            groups.setdefault(hash_spelling(label), []).append(label)
    kept = {names[0]: names for names in groups.values() if sum(images[name] for name in names) >= _RARE}
    taken = [label for names in kept.values() for label in names]
    if len(kept) < 2 or (set(taken) == set(images) and all(len(names) == 1 for names in kept.values())):
        return
    data["classes"] = kept
    others = {label: count for label, count in images.items() if label not in taken}
    proposal.comments["classes"] = [
        "group the labels as your question needs it; labels that are not listed are left out"
        + f" (here: {counts(others, 12)})" * bool(others)
    ]
