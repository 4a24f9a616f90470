"""The files that the rows of a table name: where they are, which are named twice, and which are missing."""

from collections.abc import Callable, Mapping
from functools import cache
from os.path import lexists, normpath
from pathlib import Path

from ..errors import DataError
from ..utils.config import DataConfig
from .image_table import ImageTable, Line
from .problems import Problems, listed

_OR_ALLOW = "or set data.allow_outside_root=true"


def images_folder(path: Path, config: DataConfig) -> Path:
    """Return the folder that the paths of a table start at."""
    return path.parent / Path(config.images).expanduser() if config.images else path.parent


def file_finder(table: Path, root: Path, *, allow_outside: bool) -> Callable[[Line], str]:
    """Return a function that returns the file of a row, and refuses a path outside of ``root``."""
    folder = "the folder of the manifest" if root == table.parent else str(root)
    real_root = root.resolve()
    is_inside = cache(lambda folder: folder.resolve().is_relative_to(real_root))

    def resolve(cell: str) -> Path:
        if "\0" in cell:
            raise ValueError("holds a NUL")
        if "\\" in cell and not (root / cell).exists():
            raise ValueError("holds backslashes, as Windows writes them; separate folders by /")
        if allow_outside:
            return root / Path(cell).expanduser()
        if Path(cell).is_absolute():
            raise ValueError(f"is absolute; write it relative to {folder}, {_OR_ALLOW}")
        file = root / cell
        # Resolved, so that neither .. nor a link leads out; folders once each, for there are many files.
        target = file.resolve().parent if file.is_symlink() or file.name == ".." else file.parent
        if not is_inside(target):
            raise ValueError(f"lies outside {folder}; move the file there, {_OR_ALLOW}")
        return file

    def find(line: Line) -> str:
        try:
            return str(resolve(line.cells["path"]))
        except (ValueError, OSError, RuntimeError) as error:
            raise DataError(
                f"{table}, line {line.number}: the path {line.cells['path']!r} {error}",
                public=f"a path in line {line.number} of the manifest is refused; stderr shows it",
            ) from None

    return find


def find_files(
    table: ImageTable, lines: list[Line], root: Path, config: DataConfig, problems: Problems
) -> tuple[list[Line], list[str]]:
    """Return the rows whose path is accepted, and their files; refused paths are problems."""
    if not root.is_dir():
        problems.add(f"data.images: {root}: no such folder; it is relative to the folder of the table")
        return [], []
    find_file = file_finder(table.path, root, allow_outside=config.allow_outside_root)
    kept: list[Line] = []
    files: list[str] = []
    refused: list[DataError] = []
    for line in lines:
        try:
            files.append(find_file(line))
            kept.append(line)
        except DataError as error:
            refused.append(error)
    if refused:
        more = f" ({len(refused)} of {len(lines)} rows have such a path)" * (len(refused) > 1)
        problems.add(f"{refused[0]}{more}", public=refused[0].public)
    return kept, files


def report_missing(path: Path, lines: list[Line], files: list[str], problems: Problems) -> None:
    """Add the missing files to the problems; if they are the only one, decoding reports or skips them."""
    found = zip(lines, files, strict=True)
    missing = [f"{line.cells['path']} (line {line.number})" for line, file in found if not lexists(file)]
    if missing:
        what = f"{path}: {len(missing)} of {len(files)} files are missing"
        remedy = "see data.images, or set data.on_bad_image=skip"
        problems.add(f"{what}: {listed(missing)}; {remedy}", public=what)


def without_repeats(
    table: ImageTable, lines: list[Line], labels: Mapping[str, str], config: DataConfig, problems: Problems
) -> tuple[list[Line], list[str]]:
    """Return the rows without those of a file that an earlier row names, and notes on the others.

    Repeats are problems, unless bad images are skipped: then the first row of those that agree is used, and
    none of those that contradict each other.
    """
    rows: dict[str, list[Line]] = {}
    for line in lines:
        rows.setdefault(normpath(line.cells["path"]), []).append(line)
    repeats = {name: found for name, found in rows.items() if len(found) > 1}
    if not repeats:
        return lines, []

    def content(line: Line) -> tuple[str | None, ...]:
        others = (line.cells.get(role) for role in ("patient_id", "image_id", "split"))
        return labels[line.cells["label"]], *others

    contrary = {name: found for name, found in repeats.items() if len(set(map(content, found))) > 1}
    agreeing = {name: found for name, found in repeats.items() if name not in contrary}
    if config.on_bad_image == "error":
        _add_repeats(table.where, contrary, " with another label, patient or split", problems)
        _add_repeats(table.where, agreeing, "", problems)
        return [found[0] for found in rows.values()], []
    notes = []
    if agreeing:
        count = sum(map(len, agreeing.values())) - len(agreeing)
        what = "rows that repeat a file and agree with its first row"
        notes.append(f"{table.where}: {count} {what} are left out")
    if contrary:
        places = [" and ".join(str(line.number) for line in found) for found in contrary.values()]
        count = sum(map(len, contrary.values()))
        notes.append(
            f"{table.where}: {count} rows of {len(contrary)} files are left out: those of one file differ in "
            f"label, patient or split (lines {listed(places)})"
        )
    return [found[0] for name, found in rows.items() if name not in contrary], notes


def _add_repeats(where: str, repeats: Mapping[str, list[Line]], differ: str, problems: Problems) -> None:
    remedy = "; correct the table, or leave such rows out with data.on_bad_image=skip"
    for first, second, *_ in [*repeats.values()][:1]:
        more = f"; {len(repeats)} files are in several rows" * (len(repeats) > 1)
        what = f"{where}, line {second.number}: the same file as in line {first.number}{differ}"
        problems.add(f"{what}{more}{remedy}")
