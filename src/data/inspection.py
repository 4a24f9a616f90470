"""Inspect a folder, a table or an ``.npz``: what it holds, and a config to start with."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from ..utils.config import Config
from ..utils.tables import TABLE_ENDINGS
from .contents import Contents, survey
from .file_checks import check_files
from .folders import NamePatterns, list_folder
from .listing import Listing
from .manifest import NAME as MANIFEST_NAME
from .name_checks import is_like_split
from .npz import list_npz, open_arrays
from .problems import listed
from .proposal import Proposal, counts, is_not_mirrored, tag_of
from .table_proposal import propose_table


def inspect(path: str) -> Proposal:
    """Describe what a path holds, and propose a config.

    Raises:
        DataError: The path does not exist or cannot be read.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise DataError(f"{path}: no such file or folder")
    if root.suffix.lower() in TABLE_ENDINGS and not root.is_dir():
        return propose_table(path, root, survey(root.parent))
    return _propose_folder(path, root) if root.is_dir() else _propose_npz(path, root)


def _propose_npz(path: str, root: Path) -> Proposal:
    with open_arrays(root) as arrays:
        shapes = {name: arrays.describe(name) for name in arrays}
        found = [f"{name}: {shape} of {dtype}" for name, (shape, dtype) in shapes.items()]
    proposal = Proposal([f"{path}: {len(found)} arrays", *found])
    try:
        listing = list_npz(root, "A", None)
    except DataError as error:
        proposal.problems.append(str(error))
        return proposal
    proposal.findings.append(_images_by_class(listing))
    proposal.data = {"root_dir": path, "modalities": ["A"]}
    proposal.comments["modalities"] = ["an .npz names no modality: any name, such as CT or US"]
    return proposal


def _images_by_class(listing: Listing) -> str:
    classes = Counter(listing.classes[sample.label] for sample in listing.samples)
    splits = Counter(sample.split or "none (a split is generated)" for sample in listing.samples)
    return f"{len(listing.samples)} images; classes: {counts(classes)}; splits: {counts(splits)}"


def _propose_folder(path: str, root: Path) -> Proposal:
    """Describe a folder; its table, or else its folders of classes, become a config."""
    contents = survey(root)
    here = [f"{path}: {listed(contents.describe(), 12) or 'no images and no tables'}"]
    tables = sorted(contents.tables, key=lambda name: (name != MANIFEST_NAME, name.count("/"), name))
    base, modality = _find_classes(root, contents)
    if tables and base is None:
        return _best_table(path, root, contents, tables, here)
    proposal = Proposal(here)
    if contents.dicom is not None and contents.dicom.patients:
        proposal.findings.append("DICOM files name their patients, who stay in one split")
    if tables:
        proposal.findings.append(f"tables: {listed(tables)}; inspect one to use it instead of the folders")
    proposal.problems += _unread(contents)
    if base is None:
        proposal.problems.append(
            f"{path}: no folders of classes (ROOT/MODALITY/CLASS/*), no table of images; put the images "
            "of each class into a folder, or list them in a manifest.csv: path, label, modality"
        )
        return proposal
    data: dict[str, Any] = {"root_dir": str(base), "modalities": [modality]}
    try:
        listing = list_folder(base, modality, NamePatterns(), Config().data.exclude, None)
    except DataError as error:
        proposal.problems.append(str(error))
        return proposal
    proposal.findings += [*listing.notes, f"modality {modality}: {_images_by_class(listing)}"]
    notes, is_broken = check_files(listing.root, [sample.key for sample in listing.samples])
    proposal.problems += notes
    if is_broken:
        data["on_bad_image"] = "skip"
    if is_not_mirrored(modality):
        data["augment"] = {"horizontal_flip": False}
    proposal.comments["modalities"] = _patient_advice(listing, contents)
    proposal.data = data
    return proposal


def _patient_advice(listing: Listing, contents: Contents) -> list[str]:
    if contents.dicom is not None:
        return []
    name = PurePosixPath(listing.samples[0].key).name
    return [f"each file counts as a patient of its own, unless patient_regex finds the patient in {name}"]


def _unread(contents: Contents) -> list[str]:
    """Return what to do about files that are not read."""
    if not contents.unread:
        return []
    volumes = [kind for kind in contents.unread if kind.startswith((".nii", ".mh", ".nrrd"))]
    remedy = "; export the slices of volumes as PNG or DICOM" if volumes else ""
    return [f"files that are not read as images: {counts(contents.unread)}{remedy}"]


def _best_table(path: str, root: Path, contents: Contents, tables: list[str], here: list[str]) -> Proposal:
    """Propose the first table that names images; the first one if none does."""
    first: Proposal | None = None
    for name in tables[:5]:
        table = root / name
        try:
            found = propose_table(str(Path(path) / name), table, survey(table.parent))
        except DataError as error:
            found = Proposal(problems=[str(error)])
        if first is None or (found.data is not None and first.data is None):
            first = found
        if found.data is not None:
            break
    proposal = first or Proposal()
    proposal.findings = here + proposal.findings
    proposal.problems = _unread(contents) + proposal.problems
    return proposal


def _find_classes(root: Path, contents: Contents) -> tuple[Path | None, str]:
    """Return the folder to name as the root, and the modality, by the folders that images are in.

    ``ROOT/MODALITY/CLASS``, ``ROOT/MODALITY/SPLIT/CLASS``, and the same without the level of modalities, for
    which the folder itself is the modality.
    """
    folders = Counter(PurePosixPath(key).parts[:-1] for key in contents.images)
    tops = {parts[0] for parts in folders if parts}
    whole = root if root.name else root.resolve()
    if not tops or () in folders:
        return None, ""
    depths = [len(parts) for parts in folders]
    if all(map(is_like_split, tops)) and min(depths) >= 2:
        return whole.parent, whole.name
    if max(depths) == 1:
        return (whole.parent, whole.name) if len(tops) > 1 else (None, "")
    best = max(tops, key=lambda top: sum(count for parts, count in folders.items() if parts[:1] == (top,)))
    inner = {parts[1] for parts in folders if parts[0] == best and len(parts) > 1}
    return (root, best) if len(inner) > 1 and tag_of(best) == best else (None, "")
