import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from src.errors import DataError
from src.evaluation.predictions import Predictions, read_predictions, write_predictions

ROW = st.tuples(
    st.one_of(st.none(), st.integers(0, 2**40)),
    st.integers(0, 2),
    st.lists(st.floats(), min_size=3, max_size=3),
)


def write(path: Path, classes: tuple[str, ...] = ("benign", "malignant")) -> None:
    probabilities = np.array([[0.9, 0.1], [1 / 3, 2 / 3]])
    write_predictions(path, Predictions(("a1", "b2"), (7, None), np.array([0, 1]), probabilities, classes))


def test_the_table_has_the_agreed_columns_and_full_precision(tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "val.csv"
    write(path)
    assert path.read_bytes().decode() == (
        "sample,patient,label,label_index,p_benign,p_malignant\n"
        "a1,7,benign,0,0.9,0.1\n"
        "b2,,malignant,1,0.3333333333333333,0.6666666666666666\n"
    )
    assert [p.name for p in path.parent.iterdir()] == ["val.csv"]


@settings(deadline=None, derandomize=True)
@given(rows=st.lists(ROW, max_size=6))
def test_round_trip_is_exact(rows: list[tuple[int | None, int, list[float]]]) -> None:
    probabilities = np.array([row[2] for row in rows], dtype=np.float64).reshape(len(rows), 3)
    labels = np.array([row[1] for row in rows], dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "val.csv"
        samples = tuple(f"hash{i}" for i in range(len(rows)))
        patients = tuple(row[0] for row in rows)
        write_predictions(path, Predictions(samples, patients, labels, probabilities, ("a", "b", "c")))
        back = read_predictions(path)
    assert back.samples == tuple(f"hash{i}" for i in range(len(rows)))
    assert back.patients == tuple(row[0] for row in rows)
    assert back.labels.dtype == np.int64
    np.testing.assert_array_equal(back.labels, labels)
    assert back.probabilities.dtype == np.float64
    assert back.probabilities.shape == (len(rows), 3)
    np.testing.assert_array_equal(back.probabilities, probabilities)
    zeros = probabilities == 0
    np.testing.assert_array_equal(np.signbit(back.probabilities[zeros]), np.signbit(probabilities[zeros]))


def test_numeric_class_names_are_not_taken_for_indices(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", ("1", "0"))  # data.positive_class=0
    table = pd.read_csv(tmp_path / "val.csv")
    assert list(table["label"]) == [1, 0]
    assert list(table["label_index"]) == [0, 1]
    assert roc_auc_score(table["label"], table["p_1"]) == 1.0
    np.testing.assert_array_equal(read_predictions(tmp_path / "val.csv").labels, [0, 1])


def test_a_table_of_an_earlier_version_reads_as_it_did(tmp_path: Path) -> None:
    write(tmp_path / "new.csv", ("1", "0"))
    (tmp_path / "old.csv").write_text(
        "sample,patient,label,p_1,p_0\na1,7,0,0.9,0.1\nb2,,1,0.3333333333333333,0.6666666666666666\n"
    )
    new, old = read_predictions(tmp_path / "new.csv"), read_predictions(tmp_path / "old.csv")
    assert (new.samples, new.patients, new.classes) == (old.samples, old.patients, old.classes)
    np.testing.assert_array_equal(new.labels, old.labels)
    np.testing.assert_array_equal(new.probabilities, old.probabilities)


def test_class_names_of_earlier_runs_that_begin_as_formulas_survive(tmp_path: Path) -> None:
    classes = ("=1+1", "-1")
    write(tmp_path / "val.csv", classes)
    assert "a1,7,'=1+1,0" in (tmp_path / "val.csv").read_text()
    assert "b2,,-1,1" in (tmp_path / "val.csv").read_text()  # a number, which readers need as it is
    assert read_predictions(tmp_path / "val.csv").classes == classes


def test_class_names_with_commas_quotes_and_other_scripts_survive(tmp_path: Path) -> None:
    classes = ('cyst, "simple"', "p_肝癌 gut\tartig")
    write(tmp_path / "val.csv", classes)
    assert read_predictions(tmp_path / "val.csv").classes == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line is ''"),
        ("a,b,c\n1,2,3\n", "first line is 'a,b,c'"),
        ("sample,label,patient,p_a,p_b\n", "first line"),
        ("sample,patient,label\n", "two classes or more"),
        ("sample,patient,label,label_index,p_a\n", "two classes or more"),
        (
            "sample,patient,label,label_index,p_a,p_b\nx,1,a,1,0.5,0.5\n",
            "row 2: .*label 'a' with the label_index 1, which is 'b'",
        ),
        ("sample,patient,label,label_index,p_a,p_b\nx,1,b,2,0.5,0.5\n", "row 2: .*label 2"),
        ("sample,patient,label,label_index,p_a,p_b\nx,1,a,0,0.5\n", "row 2: .*1 probabilities"),
        ("sample,patient,label,label_index,p_a,p_b\nx,1,0\n", "row 2"),
        ("sample,patient,label,p_a\n", "two classes or more"),
        ("sample,patient,label,p_a,b\n", "first line"),
        ("sample,patient,label,p_a,p_a\n", "first line"),
        (
            "sample,patient,label,p_a,p_b\nx,1,0,0.5,0.5\nx,1,0,0.5\n",
            "row 3: .*1 probabilities for 2 classes",
        ),
        ("sample,patient,label,p_a,p_b\nx,1,0,0.5,0.5,0.5\n", "row 2: .*3 probabilities"),
        ("sample,patient,label,p_a,p_b\n\n", "row 2"),
        ("sample,patient,label,p_a,p_b\nx,1,a,0.5,0.5\n", "row 2: .*'a'"),
        ("sample,patient,label,p_a,p_b\nx,1,1.0,0.5,0.5\n", "row 2"),
        ("sample,patient,label,p_a,p_b\nx,1,2,0.5,0.5\n", "row 2: .*label 2"),
        ("sample,patient,label,p_a,p_b\nx,1,-1,0.5,0.5\n", "row 2: .*label -1"),
        ("sample,patient,label,p_a,p_b\nx,p7,0,0.5,0.5\n", "row 2: .*'p7'"),
        ("sample,patient,label,p_a,p_b\nx,1,0,0.5,half\n", "row 2: .*'half'"),
        ("sample,patient,label,p_a,p_b\nx,1,0,0.5,\n", "row 2"),
        ('sample,patient,label,p_a,p_b\n"x,1,0,0.5,0.5\n', "can be read"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_predictions(tmp_path / "none.csv")
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(DataError, match=r"image\.csv"):
        read_predictions(tmp_path / "image.csv")
    with pytest.raises(DataError, match="can be read"):
        read_predictions(tmp_path)


def test_lengths_that_do_not_fit_leave_the_older_table_alone(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    write(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="3 classes"):
        write(path, ("a", "b", "c"))
    wrong = Predictions(("a1", "b2"), (7,), np.array([0, 1]), np.full((2, 2), 0.5), ("a", "b"))
    with pytest.raises(ValueError, match="shorter"):
        write_predictions(path, wrong)
    assert path.read_bytes() == before
