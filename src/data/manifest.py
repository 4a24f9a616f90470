"""Tables of images, such as a folder's ``manifest.csv``: one row per image, with label, patient and split."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import DataError
from ..utils.config import DataConfig
from ..utils.config_data import ColumnsConfig
from .folders import NamePatterns, listing_of_files
from .image_table import NEEDED, ImageTable, Line, Row, read_table
from .listing import UNKNOWN, Listing, Sample, order_classes
from .name_checks import check_classes, hash_spelling, name_splits, unify
from .problems import Problems, listed, nearest
from .table_files import file_finder, find_files, images_folder, report_missing, without_repeats

NAME = "manifest.csv"


def list_manifest(path: Path, modality: str, config: DataConfig, patterns: NamePatterns) -> Listing:
    """List one modality of a table for training; paths are relative to ``data.images``.

    Args:
        path: The table; `data.columns` names its columns.
        modality: Which rows to use.
        config: The data section.
        patterns: Patterns for file names, used if the table has no such column.

    Raises:
        DataError: Columns are missing, cells empty, wrong or contradictory, files outside the folder, or
            fewer than two classes are found; the message names all of these with their lines.
    """
    problems = Problems(str(path))
    needed = _needed(path, config, problems)
    table = read_table(path, config, problems, needed)
    root = images_folder(path, config)
    if not table.columns.issuperset(needed):
        report_missing(path, *find_files(table, table.lines, root, config, problems), problems)
        problems.check()
    for role in NEEDED if config.classes is None else ("path", "modality"):
        check_filled(table, role, problems)
    lines, modality_notes = _of_modality(table, modality, problems)
    labels, class_notes = _read_labels(table, lines, config, problems)
    lines = [line for line in lines if line.cells["label"] in labels and line.cells["path"]]
    splits: Row = {}
    with problems.collected():
        splits = name_splits(first_occurrences(lines, "split"), table.where)
    for role in ("split", "patient_id"):
        _check_all_or_none(path, lines, role, problems)
    with problems.collected():
        _check_patterns_unused(path, table.columns, patterns)
    lines, repeat_notes = without_repeats(table, lines, labels, config, problems)
    names = sorted({labels[line.cells["label"]] for line in lines})
    if len(names) < 2 and (lines or not problems.found):
        found = f"the label {names[0]!r} only" if names else "no rows that can be used"
        why = "".join(f"; {note}" for note in repeat_notes)
        problems.add(f"{path}: {modality} has {found}; expected two or more{why}")
    lines, files = find_files(table, lines, root, config, problems)
    if problems.found:
        report_missing(path, lines, files, problems)
    problems.check()
    classes = order_classes(names, config.positive_class)
    numbers = {spelling: classes.index(name) for spelling, name in labels.items() if name in classes}
    rows = zip(lines, files, strict=True)
    samples = [_sample(line, file, numbers, splits, patterns) for line, file in rows]
    notes = (*table.notes, *modality_notes, *class_notes, *repeat_notes)
    return listing_of_files(root, modality, classes, samples, notes)


def _needed(path: Path, config: DataConfig, problems: Problems) -> tuple[str, ...]:
    """Return the roles that need a column.

    A table whose columns the user has named needs none for the modality if one is configured.
    """
    column, is_one = config.columns.modality, len(config.modalities) == 1
    if column is None and not is_one:
        problems.add(
            f"{path}: data.columns.modality is null, so all rows are of one modality, and data.modalities "
            f"names {', '.join(config.modalities)}; choose one, or name the column"
        )
    is_implied = config.columns != ColumnsConfig() and column == "modality" and is_one
    return NEEDED[:2] if column is None or is_implied else NEEDED


def check_filled(table: ImageTable, role: str, problems: Problems) -> None:
    """Add the rows whose cell of a role is empty to the problems."""
    if role not in table.columns:
        return
    empty = [line.number for line in table.lines if not line.cells[role]]
    if empty:
        more = f", as in {len(empty)} of {len(table.lines)} rows" * (len(empty) > 1)
        remedy = "; fill it in, or choose rows with data.where or data.classes" if role == "label" else ""
        problems.add(f"{table.where}, line {empty[0]}: {role} is empty{more}{remedy}")


def _read_labels(
    table: ImageTable, lines: list[Line], config: DataConfig, problems: Problems
) -> tuple[dict[str, str], list[str]]:
    """Map each label to its class, and describe the rows of labels that have none."""
    places = first_occurrences(lines, "label")
    if config.classes is None:
        names = {name: name for name in places}
        with problems.collected():
            check_classes(places, table.where)
        with problems.collected():
            names = unify(places, "class", table.where)
        return names, []
    classes = {label: name for name, group in config.classes.items() for label in group}
    known = {hash_spelling(label): label for label in classes}
    for label in places.keys() - classes.keys():
        if alike := known.get(hash_spelling(label)):
            problem = f"{table.where}, {places[label]}: the label {label!r} may be {alike!r} of data.classes"
            public = f"{table.where}, {places[label]}: a label may be one of data.classes in another spelling"
            problems.add(f"{problem}; list it as well, or write it in one way", public=public)
    for label in sorted(classes.keys() - table.labels):
        found = nearest(label, sorted(table.labels - classes.keys() - {""}) or places)
        what = f"{table.where}: no row has the label {label!r} of the class {classes[label]!r} (data.classes)"
        problems.add(f"{what}; {found}", public=what)
    others = Counter(line.cells["label"] for line in lines if line.cells["label"] not in classes)
    if not others:
        return classes, []
    what = listed([f"{label or 'empty'} {count}" for label, count in others.most_common()], 10)
    counts = f"{others.total()} of {len(lines)} rows with other labels"
    return classes, [f"{table.where}: data.classes leaves out {counts}: {what}"]


def _of_modality(table: ImageTable, modality: str, problems: Problems) -> tuple[list[Line], list[str]]:
    """Return the rows of one modality."""
    if "modality" not in table.columns:
        return table.lines, [f"{table.where}: no column for the modality; all rows are taken as {modality}"]
    tags: Mapping[str, str] = {}
    with problems.collected():
        tags = unify(first_occurrences(table.lines, "modality"), "modality", table.where)
    chosen = [line for line in table.lines if tags.get(line.cells["modality"]) == modality]
    if not chosen:
        there = ", ".join(sorted({line.cells["modality"] for line in table.lines} - {""})) or "none"
        what = f"{table.where}: no line of modality {modality!r}"
        problems.add(
            f"{what}; modalities there: {there[:200]}; choose one with --modality, or set "
            "data.columns.modality=null to take all rows",
            public=what,
        )
    return chosen, []


def first_occurrences(lines: Iterable[Line], column: str) -> dict[str, str]:
    """Map each value of a column to its first line; empty cells are skipped."""
    places: dict[str, str] = {}
    for line in lines:
        cell = line.cells.get(column)
        if cell and cell not in places:
            places[cell] = f"line {line.number}"
    return places


def _check_all_or_none(path: Path, lines: list[Line], column: str, problems: Problems) -> None:
    without = [line.number for line in lines if not line.cells.get(column)]
    if without and len(without) < len(lines):
        problems.add(
            f"{path}, line {without[0]}: {column} is empty, as in {len(without)} of {len(lines)} lines of "
            f"this modality; either all lines have one, or none (data.columns.{column}=null ignores it)"
        )


def _check_patterns_unused(path: Path, columns: frozenset[str], patterns: NamePatterns) -> None:
    for column, pattern, setting in (
        ("patient_id", patterns.patient_regex, "patient_regex"),
        ("image_id", patterns.image_id_regex, "image_id_regex"),
    ):
        if pattern is not None and column in columns:
            raise DataError(
                f"{path}: has a column {column}, so data.{setting} would be ignored; remove one of the two"
            )


def _sample(line: Line, file: str, labels: Mapping[str, int], splits: Row, patterns: NamePatterns) -> Sample:
    cells = line.cells
    image_id = cells.get("image_id") or patterns.image_id(file)
    if image_id is None and patterns.must_match:
        image_id = cells.get("image_id")  # in training, an empty cell is the id of a patient's only image
    return Sample(
        file,
        cells["path"],
        labels.get(cells.get("label", ""), UNKNOWN),
        cells.get("patient_id") or patterns.patient(file),
        splits.get(cells.get("split", "")),
        image_id,
    )


def needed_unlabeled(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that images need for inference."""
    return ("path", "modality") if len(modalities) > 1 else ("path",)


def list_unlabeled_manifest(
    path: Path, modality: str, config: DataConfig, classes: tuple[str, ...], patterns: NamePatterns
) -> Listing:
    """List the images of one modality of a table for inference: only paths are required.

    Columns that the table lacks under the names of the model's `data.columns` are looked for under the usual
    names, and ``data.where`` applies as far as the table has its columns.

    Raises:
        DataError: The file is not a table of images, a path is refused, or a class has two spellings.
    """
    problems = Problems(str(path))
    table = read_table(path, config, problems, needed_unlabeled(config.modalities), is_lenient=True)
    check_filled(table, "path", problems)
    problems.check()
    root = images_folder(path, config)
    root = root if root.is_dir() else path.parent
    return list_unlabeled_table(table, modality, config, classes, patterns, root=root)


def list_unlabeled_table(
    table: ImageTable,
    modality: str,
    config: DataConfig,
    classes: tuple[str, ...],
    patterns: NamePatterns,
    *,
    root: Path,
) -> Listing:
    """List the images of one modality of a table that was read for inference.

    Args:
        table: The table.
        modality: Which rows to use.
        config: The data section of the model's run.
        classes: The model's.
        patterns: Patterns for file names.
        root: The folder that the table's paths start at.

    Raises:
        DataError: A path is refused, or a class has two spellings.
    """
    lines = [line for line in table.lines if line.cells.get("modality", modality) == modality]
    # The listed files may be anywhere: they are only ever decoded as images.
    find_file = file_finder(table.path, root, allow_outside=True)
    groups = {label: name for name, group in (config.classes or {}).items() for label in group}
    places = first_occurrences(lines, "label")
    named = {groups.get(label, label): place for label, place in places.items()}
    spellings = unify(named | dict.fromkeys(classes, "a class of the model"), "class", table.where)
    known = {spellings[name]: label for label, name in enumerate(classes)}
    labels = {label: known.get(spellings[groups.get(label, label)], UNKNOWN) for label in places}
    samples = [_sample(line, find_file(line), labels, {}, patterns) for line in lines]
    return listing_of_files(root, modality, classes, samples, table.notes)
