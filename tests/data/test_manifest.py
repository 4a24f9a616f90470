"""A folder's manifest.csv."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.errors import DataError
from src.utils.config import DataConfig
from tests.images import make_images

COLUMNS = ["path", "label", "modality", "patient_id", "image_id", "split"]


def make_rows(root: Path, count: int = 24) -> list[dict[str, str]]:
    """Two images of each patient in two modalities, as files; and the lines that describe them."""
    images, labels = make_images(2 * count, 16, 0)
    rows = []
    for i in range(count):
        patient = i // 4 * 2 + i % 2
        for j, modality in enumerate("AP"):
            path = f"files/{modality}{i:02d}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[2 * i + j]).save(root / path)
            rows.append(
                dict(
                    zip(
                        COLUMNS,
                        [
                            path,
                            ("neg", "pos")[labels[i]],
                            modality,
                            f"CANARY{patient}",
                            str(i % 4 // 2),
                            ("train", "train", "val")[i // 4 % 3],
                        ],
                        strict=True,
                    )
                )
            )
    return rows


def write(root: Path, rows: list[dict[str, str]], columns: list[str] = COLUMNS) -> Path:
    root.mkdir(exist_ok=True)
    with (root / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return root


def load(root: Path, **changes: object) -> Dataset:
    return load_dataset(DataConfig.model_validate({"root_dir": str(root), **changes}), root.parent / "cache")


@pytest.fixture
def root(folder: Path) -> Path:
    (folder / "d").mkdir()
    return folder / "d"


def test_labels_patients_and_splits_are_the_manifest_s(root: Path) -> None:
    rows = make_rows(root)
    dataset = load(write(root, rows))
    assert dataset.table() == [
        ("train", "neg", 8, 4),
        ("train", "pos", 8, 4),
        ("val", "neg", 4, 2),
        ("val", "pos", 4, 2),
    ]
    expected = {
        (np.array(Image.open(root / row["path"])).tobytes(), row["label"], row["split"])
        for row in rows
        if row["modality"] == "A"
    }
    found = {
        (dataset.batch(name, np.array([i])).numpy().tobytes(), dataset.classes[label], name)
        for name, split in dataset.splits.items()
        for i, label in enumerate(split.labels)
    }
    assert found == expected
    # The file itself may be named, and the order of its lines means nothing.
    write(root, rows[::-1])
    assert load(root / "manifest.csv").fingerprint == dataset.fingerprint


def test_without_splits_patients_stay_together(root: Path) -> None:
    dataset = load(write(root, make_rows(root, 48), COLUMNS[:5]))
    patients = [set(split.patients) for split in dataset.splits.values()]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 24


def test_only_the_needed_columns(root: Path) -> None:
    rows = make_rows(root)
    dataset = load(write(root, rows, COLUMNS[:3]))
    assert set(dataset.splits["train"].patients) == {None}


def test_a_patient_in_two_splits_is_a_leak(root: Path) -> None:
    rows = make_rows(root)
    rows[0]["patient_id"] = rows[-2]["patient_id"]
    assert (rows[0]["split"], rows[-2]["split"]) == ("train", "val")
    dataset = load(write(root, rows))
    assert dataset.counts["leaked_images"] == 1
    assert "1 patient in train and val" in dataset.warnings[0]
    with pytest.raises(DataError, match="1 patient in train and val"):
        load(root, on_leak="error")
    assert load(root, on_leak="allow").counts["allowed_leaks"] == 1


def test_excel_writes_a_mark_spaces_and_empty_lines(root: Path) -> None:
    write(root, make_rows(root))
    plain = load(root).fingerprint
    text = (root / "manifest.csv").read_text().replace(",", " , ") + "\n,,,,,\n"
    (root / "manifest.csv").write_text(text, encoding="utf-8-sig")
    assert load(root).fingerprint == plain


def change(column: str, value: str) -> dict[str, str]:
    return {column: value}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (change("path", "/etc/passwd"), "line 4: the path '/etc/passwd' is absolute.*allow_outside_root"),
        (change("path", "../other.png"), "line 4: the path '../other.png' lies outside.*allow_outside_root"),
        (change("path", "a/../../x.png"), "lies outside"),
        (change("path", "link.png"), "lies outside"),
        (change("path", "files\\A01.png"), "line 4: the path .* holds backslashes.*separate folders by /"),
        (change("path", ""), "line 4: path is empty"),
        (change("label", " "), "line 4: label is empty"),
        (
            change("split", "validation"),
            r"'validation' \(line 4\) and 'val' \(line 18\) may both be val",
        ),
        (change("split", "fold_1"), "line 4: the split 'fold_1' is unknown.*data.folds"),
        (change("split", ""), r"line 4: split is empty, as in 1 of 24 lines"),
        (change("patient_id", ""), r"line 4: patient_id is empty, as in 1 of 24 lines"),
        (change("path", "files/A00.png"), "line 4: the same file as in line 2"),
        (change("path", "files/none.png"), "none.png: No such file"),
    ],
)
def test_a_wrong_cell_is_refused_with_its_line(root: Path, changes: dict[str, str], message: str) -> None:
    rows = make_rows(root)
    (root.parent / "other.png").write_bytes((root / "files/A00.png").read_bytes())
    (root / "link.png").symlink_to(root.parent / "other.png")
    rows[2] |= changes
    with pytest.raises(DataError, match=message) as error:
        load(write(root, rows))
    assert changes.get("path", "-") not in error.value.public or not changes.get("path")
    assert "CANARY" not in error.value.public


def test_outside_may_be_allowed(root: Path) -> None:
    rows = make_rows(root)
    outside = root.parent / "other.png"
    (root / "files/A01.png").rename(outside)
    for path in (str(outside), "../other.png"):
        rows[2]["path"] = path
        assert len(load(write(root, rows), allow_outside_root=True).splits["train"]) == 16


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,label", "no column modality; the first line holds path, label, and must name"),
        ("path;label;modality", "no column path, label, modality.*separated by commas"),
        ("", "the first line holds nothing"),
        ("path,label,modality,PatientID", "'PatientID' would be ignored; rename it to patient_id"),
        ("path,label,modality,MRN", "'MRN' would be ignored; rename it to patient_id"),
        ("path,label,modality,Split", "'Split' would be ignored; rename it to split"),
        ("Path,label,modality", "'Path' would be ignored; rename it to path"),
        ("path,label,modality,label", "duplicate column 'label'"),
        ("path,label,modality,age", "line 2: 3 cells for 4 columns"),
    ],
)
def test_columns_are_checked(root: Path, header: str, message: str) -> None:
    (root / "manifest.csv").write_text(f"{header}\na.png,pos,A\n")
    with pytest.raises(DataError, match=message):
        load(root)


def test_patients_may_be_read_from_names(root: Path) -> None:
    rows = make_rows(root)
    for row in rows:
        name = f"files/{row['patient_id']}_{Path(row['path']).name}"
        (root / row["path"]).rename(root / name)
        row["path"] = name
    told = load(write(root, rows))
    named = load(write(root, rows, ["path", "label", "modality", "split"]), patient_regex="^(CANARY[0-9]+)_")
    assert named.fingerprint == told.fingerprint
    with pytest.raises(DataError, match=r"has a column patient_id, so data\.patient_regex would be ignored"):
        load(write(root, rows), patient_regex="^(CANARY[0-9]+)_")


def test_no_cell_reaches_the_store(root: Path) -> None:
    rows = make_rows(root)
    for text in (
        "CANARY.png,pos,A\n",
        "path,label,modality,split\nx.png,pos,A,CANARY\n",
        "path,label,modality\nx.png,a,CANARY\n",
    ):
        (root / "manifest.csv").write_text(text)
        with pytest.raises(DataError, match="CANARY") as error:
            load(root)
        assert "CANARY" not in error.value.public
    for row in rows:
        row["path"] = f"files/CANARY-{row['path'].rpartition('/')[2]}"
    with pytest.raises(DataError, match="CANARY") as error:
        load(write(root, rows))
    assert "CANARY" not in error.value.public


def test_an_unknown_modality_and_a_single_label(root: Path) -> None:
    rows = make_rows(root)
    with pytest.raises(DataError, match="no line of modality 'X'; modalities there: A, P"):
        load(write(root, rows), modalities=("X",))
    for row in rows:
        row["label"] = "pos"
    with pytest.raises(DataError, match="A has the label 'pos' only"):
        load(write(root, rows))


CELL = st.text(max_size=12) | st.sampled_from(["a.png", "../b", "/c", "~x", "train", "val", "1", ""])
LINE = st.tuples(CELL, st.sampled_from("ab"), st.just("A"), CELL, st.sampled_from(["train", "val"]))


CELL = st.text(max_size=12) | st.sampled_from(["a.png", "b.png", "../b", "/c", "~x", "\0", "1", ""])
LINE = st.tuples(CELL, st.sampled_from("ab"), st.just("A"), CELL, st.sampled_from(["train", "val"]))
TEXTS = st.binary(max_size=300) | st.lists(LINE.map(",".join), min_size=2, max_size=5).map(
    lambda lines: "\n".join(["path,label,modality,patient_id,split", *lines]).encode("utf-8", "replace")
)


@given(TEXTS, st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_gives_a_traceback(folder: Path, text: bytes, allow: bool) -> None:
    (folder / "manifest.csv").write_bytes(text)
    config = DataConfig(root_dir=str(folder), allow_outside_root=allow, on_bad_image="skip")
    # Nothing is an image here, so a manifest that is read ends as one without any.
    with pytest.raises(DataError):
        load_dataset(config, folder / "cache")


def test_modalities_are_joined_by_patient_and_image_id(root: Path) -> None:
    rows = make_rows(root)
    both = load(write(root, rows), modalities=("A", "P"))
    assert both.channels == 2
    assert len(both.splits["train"]) == 16
    expected = {
        (*(np.array(Image.open(root / row["path"])).tobytes() for row in pair), pair[0]["label"])
        for pair in zip(rows[::2], rows[1::2], strict=True)
    }
    found = {
        (*(channel.tobytes() for channel in image), both.classes[label])
        for name, split in both.splits.items()
        for image, label in zip(both.batch(name, np.arange(len(split))).numpy(), split.labels, strict=True)
    }
    assert found == expected
    swapped = load(root, modalities=("P", "A"))
    assert swapped.fingerprint != both.fingerprint
    image = both.batch("val", np.array([0])).numpy()
    assert any((image[:, ::-1] == other).all() for other in swapped.batch("val", np.arange(8)).numpy())
    # Each modality is decoded once for all runs that use it.
    load(root, modalities=("A",))
    assert len(list((root.parent / "cache/packs").glob("*.npy"))) == 2


def test_what_lacks_a_modality_is_left_out_and_reported(root: Path) -> None:
    rows = make_rows(root)
    gone = [row for row in rows if row["modality"] == "P" and row["patient_id"] == "CANARY0"]
    kept = [row for row in rows if row not in gone and row != rows[2]]
    dataset = load(write(root, kept), modalities=("A", "P"))
    assert sum(len(split) for split in dataset.splits.values()) == 24 - 3
    assert dataset.counts["unpaired_images"] == 3
    (note,) = dataset.warnings
    assert "2 of A, 1 of P" in note
    assert "1 patient loses all images" in note
    assert "CANARY" not in note


def test_a_damaged_partner_leaves_the_pair_out(root: Path) -> None:
    rows = make_rows(root)
    (root / rows[1]["path"]).write_text("no image")
    dataset = load(write(root, rows), modalities=("A", "P"), on_bad_image="skip")
    assert dataset.counts["bad_images"] == dataset.counts["unpaired_images"] == 1


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (
            1,
            change("label", "pos"),
            r"A00.png \(A\) and files/P00.png \(P\) belong together and differ in label",
        ),
        (1, change("split", "val"), "differ in split"),
        (0, change("image_id", "1"), "have the same patient and image id"),
    ],
)
def test_partners_must_agree(root: Path, index: int, changes: dict[str, str], message: str) -> None:
    rows = make_rows(root)
    rows[index] |= changes
    with pytest.raises(DataError, match=message):
        load(write(root, rows), modalities=("A", "P"))


def test_nothing_to_join_shows_what_was_compared(root: Path) -> None:
    rows = make_rows(root)
    for row in rows[1::2]:
        row["patient_id"] += "b"
    with pytest.raises(
        DataError, match="no image of A has a counterpart in P: A has patient 'CANARY"
    ) as error:
        load(write(root, rows), modalities=("A", "P"))
    assert "CANARY" not in error.value.public


def test_other_classes_in_another_modality(root: Path) -> None:
    rows = make_rows(root)
    for row in rows[1::2]:
        row["label"] = row["label"].upper()
    with pytest.raises(DataError, match="A has the classes neg, pos, and P has NEG, POS"):
        load(write(root, rows), modalities=("A", "P"))
