"""Tables with any columns, rows to choose, labels to group, and problems of all kinds."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.data.sources import load_inputs
from src.errors import ConfigError, DataError
from src.utils.config import Config
from tests.images import make_images

HEADER = ("filename", "finding", "patientid", "view", "age")
COLUMNS = {"path": "filename", "label": "finding", "patient_id": "patientid"}
SETTINGS: dict[str, object] = {"columns": COLUMNS, "images": "images"}
Row = tuple[str, ...]


def make_rows(folder: Path, count: int = 24) -> list[Row]:
    """Write images below ``d/images`` and return a row for each."""
    images, labels = make_images(count, 16, 0)
    (folder / "d/images").mkdir(parents=True)
    rows: list[Row] = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / f"d/images/{i:02d}.png")
        rows.append(
            (f"{i:02d}.png", ("none", "flu")[label], f"p{i // 2}", ("PA", "AP", "L")[i // 2 % 3], "40")
        )
    return rows


def write(folder: Path, rows: Sequence[Row], *, header: Sequence[str] = HEADER, separator: str = ",") -> Path:
    path = folder / "d/metadata.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])
    return path


def load(path: Path, **changes: object) -> Dataset:
    values = {"root_dir": str(path), **SETTINGS, **changes}
    return load_dataset(Config.from_dict({"data": values}).data, path.parent.parent / "cache")


def size(dataset: Dataset) -> int:
    return sum(len(split) for split in dataset.splits.values())


def test_columns_of_any_name_and_a_folder_of_images(folder: Path) -> None:
    rows = make_rows(folder)
    dataset = load(write(folder, rows))
    assert size(dataset) == 24
    assert dataset.classes == ("flu", "none")
    assert len({patient for split in dataset.splits.values() for patient in split.patients}) == 12
    assert any("no column for the modality; all rows are taken as A" in note for note in dataset.warnings)
    # The same images listed in the usual columns are the same data.
    usual = [(f"images/{name}", label, "A", patient) for name, label, patient, *_ in rows]
    path = write(folder, usual, header=("path", "label", "modality", "patient_id"))
    assert load(path, columns={}, images=None).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("encoding", "separator", "line_end", "described"),
    [
        ("utf-8", ";", "\n", "UTF-8, separated by semicolons, Unix line ends"),
        ("utf-8", "\t", "\r\n", "UTF-8, separated by tabs, Windows line ends"),
        ("utf-16", ";", "\r\n", "UTF-16 with a byte order mark, separated by semicolons, Windows line ends"),
        ("utf-16", ",", "\n", "UTF-16 with a byte order mark, separated by commas, Unix line ends"),
        ("utf-8-sig", ";", "\n", "UTF-8 with a byte order mark, separated by semicolons"),
    ],
)
def test_other_ways_to_write_a_table(
    folder: Path, encoding: str, separator: str, line_end: str, described: str
) -> None:
    rows = make_rows(folder)
    expected = load(write(folder, rows))
    path = write(folder, [(*row[:4], "40,5") for row in rows], separator=separator)
    text = path.read_text().replace("\r\n", "\n").replace("\n", line_end)
    path.write_bytes(text.encode(encoding))
    dataset = load(path)
    assert dataset.fingerprint == expected.fingerprint
    assert f"{path}: read as {described}" in dataset.warnings[0]
    assert not any("read as" in note for note in expected.warnings)


def test_an_ambiguous_separator_is_refused(folder: Path) -> None:
    make_rows(folder)
    path = folder / "d/metadata.csv"
    path.write_text("a;b,c\n1;2,3\n4;5,6\n")
    with pytest.raises(DataError, match="may be separated by commas or semicolons; save it with one"):
        load(path)
    path.write_bytes("filename;finding\n".encode("utf-16-le") * 3)
    with pytest.raises(DataError, match=r"NUL byte.*UTF-16 without a mark"):
        load(path)


def test_rows_are_chosen_by_values(folder: Path) -> None:
    path = write(folder, make_rows(folder))
    dataset = load(path, where={"view": ["PA", "AP"], "age": 40})
    assert size(dataset) == 16
    assert f"{path}: data.where takes 16 of 24 rows (left out by view 8)" in dataset.warnings
    assert dataset.fingerprint == load(path, where={"view": ("PA", "AP")}).fingerprint


def test_labels_are_grouped_and_others_counted(folder: Path) -> None:
    rows = make_rows(folder)
    labels = {0: "none", 1: "flu", 2: "cold", 3: "", 4: "todo"}
    rows = [(row[0], labels[i % 5 if i < 10 else i % 2], *row[2:]) for i, row in enumerate(rows)]
    path = write(folder, rows)
    dataset = load(
        path, classes={"sick": ["flu", "cold"], "well": ["none"]}, val_fraction=0.3, test_fraction=0
    )
    assert dataset.classes == ("sick", "well")
    assert size(dataset) == 20
    (note,) = (note for note in dataset.warnings if "data.classes" in note)
    assert note == f"{path}: data.classes leaves out 4 of 24 rows with other labels: empty 2, todo 2"


def test_a_file_in_two_rows(folder: Path) -> None:
    rows = make_rows(folder)
    rows += [(f"./{rows[2][0]}", *rows[2][1:]), (rows[5][0], "none", *rows[5][2:])]
    path = write(folder, rows)
    with pytest.raises(DataError) as error:
        load(path)
    assert f"{path}, line 27: the same file as in line 7 with another label" in str(error.value)
    assert f"{path}, line 26: the same file as in line 4; correct the table" in str(error.value)
    dataset = load(path, on_bad_image="skip")
    assert size(dataset) == 23
    assert f"{path}: 1 rows that repeat a file and agree with its first row are left out" in dataset.warnings
    assert any(
        "2 rows of 1 files are left out" in note and "lines 7 and 27" in note for note in dataset.warnings
    )


def test_all_problems_are_reported_at_once(folder: Path) -> None:
    rows = make_rows(folder)
    rows[0] = (rows[0][0], "", *rows[0][2:])
    rows[1] = (rows[1][0], "", *rows[1][2:])
    rows[2] = ("gone.png", *rows[2][1:])
    rows[3] = ("/etc/passwd", *rows[3][1:])
    rows[4] = (*rows[4][:2], "", *rows[4][3:])
    rows[5] = rows[5][:3]
    rows.append((rows[6][0], "none" if rows[6][1] == "flu" else "flu", *rows[6][2:]))
    path = write(folder, rows)
    columns = COLUMNS | {"split": "spilt", "modality": None}
    where = {"veiw": ["PA"], "age": ["40", "400"]}
    with pytest.raises(DataError) as error:
        load(path, columns=columns, where=where)
    message = str(error.value)
    assert message.startswith(f"{path}: 9 problems:\n  - ")
    for problem in (
        "no column 'spilt' (data.columns.split)",
        "no column 'veiw' (data.where); did you mean view?",
        "no row has '400' in the column 'age' (data.where); did you mean 40?",
        "line 7: 3 cells for 5 columns",
        "line 2: label is empty, as in 2 of 24 rows",
        "line 6: patient_id is empty",
        "line 26: the same file as in line 8 with another label",
        "line 5: the path '/etc/passwd' is absolute",
        "1 of 20 files are missing: gone.png (line 4)",
    ):
        assert problem in message
    assert "passwd" not in error.value.public
    assert "gone.png" not in error.value.public


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": {"path": "file_name", "label": "finding"}},
            "no column 'file_name'.*did you mean filename",
        ),
        ({"columns": COLUMNS | {"label": "Findings"}}, r"data.columns.label\); did you mean finding\?"),
        ({"columns": {"path": "filename", "label": "finding"}}, "'patientid' would be ignored.*or to null"),
        ({"classes": {"a": ["flew"], "b": ["none"]}}, "no row has the label 'flew' .*; did you mean flu"),
        ({"classes": {"a": ["Flu"], "b": ["none"]}}, "the label 'flu' may be 'Flu' of data.classes"),
        ({"images": "pictures"}, "data.images: .*pictures: no such folder"),
        ({"columns": COLUMNS | {"modality": None}, "modalities": ["A", "P"]}, "data.modalities names A, P"),
        ({"modalities": ["A", "P"]}, "no column modality"),
    ],
)
def test_a_wrong_setting_names_what_is_there(folder: Path, changes: dict[str, object], message: str) -> None:
    path = write(folder, make_rows(folder))
    with pytest.raises(DataError, match=message):
        load(path, **changes)


def test_a_column_may_be_ignored(folder: Path) -> None:
    path = write(folder, make_rows(folder))
    dataset = load(path, columns={"path": "filename", "label": "finding", "patient_id": None})
    assert set(dataset.splits["train"].patients) == {None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("columns: {pth: a}", "data.columns.pth: unknown key; did you mean data.columns.path?"),
        ("classes: {a: [x], b: [x]}", "the label 'x' is listed more than once"),
        ("classes: {a: [x]}", "two classes or more are needed"),
        ("classes: {yes: [x], no: [y]}", "YAML reads the key yes as a truth value; quote it"),
        ("where: {view: yes}", "YAML reads this as True; quote the name"),
    ],
)
def test_wrong_settings(folder: Path, settings: str, message: str) -> None:
    (folder / "c.yaml").write_text(f"data:\n  {settings}\n")
    with pytest.raises(ConfigError, match=message):
        Config.from_file(folder / "c.yaml")


def test_settings_of_a_table_are_one_parameter_each_and_are_read_back(folder: Path) -> None:
    classes = {"sick (all)": ["flu", "1"], "well": ["none"]}
    config = Config.from_dict({"data": {"classes": classes, "where": {"View.Position": "PA"}}})
    assert config.flat()["data.classes"] == classes
    assert config.flat()["data.columns.path"] == "path"
    (folder / "c.yaml").write_text(config.to_yaml())
    assert Config.from_file(folder / "c.yaml") == config
    assert Config.settings_in(folder / "c.yaml")["data.where"] == {"View.Position": ["PA"]}


def test_inference_reads_the_same_table_and_the_usual_columns(folder: Path) -> None:
    rows = make_rows(folder)
    path = write(folder, rows)
    settings = {**SETTINGS, "where": {"view": ["PA", "AP"]}, "classes": {"sick": ["flu"], "well": ["none"]}}
    config = Config.from_dict({"data": settings | {"image_size": 16, "channels": 1}}).data
    classes = ("sick", "well")
    inputs = load_inputs(str(path), config, classes, folder / "cache")
    assert len(inputs) == 16
    assert np.bincount(inputs.records.labels).tolist() == [8, 8]
    assert any("data.where takes 16 of 24 rows" in note for note in inputs.notes)
    usual = folder / "usual.csv"
    usual.write_text("path\n" + "".join(f"d/images/{row[0]}\n" for row in rows))
    inputs = load_inputs(str(usual), config, classes, folder / "cache")
    assert len(inputs) == 24
    assert any("no column 'filename'; the column path is used" in note for note in inputs.notes)
    assert any("no column view, so data.where does not choose rows by it" in note for note in inputs.notes)
