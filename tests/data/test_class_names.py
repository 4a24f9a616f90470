"""Class names that spreadsheets would run as formulas, in every layout that takes names."""

from pathlib import Path

import pytest

from src.data.dataset import load_dataset
from src.data.listing import order_classes
from src.data.name_checks import is_like_negative
from src.errors import DataError
from src.utils.config import DataConfig
from tests.images import write_folder


@pytest.mark.parametrize("name", ["=1+1", "+ve", "-ve", "-", "@pos"])
def test_a_class_that_begins_as_a_formula_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(
        DataError, match=r"class '.*rename the class \(its folder, or its label in the manifest\)"
    ):
        order_classes(["neg", name], None)


def test_signs_of_numbers_and_inside_names_are_no_formulas() -> None:
    assert order_classes(["-1", "1"], None) == ("-1", "1")
    assert order_classes(["ER+", "T1-2"], "ER+") == ("T1-2", "ER+")


def test_names_that_look_like_the_absence_of_a_finding() -> None:
    for name in (
        "other",
        "Normal",
        "benign",
        "NEG",
        "negative",
        "healthy",
        "no_tumor",
        "No Finding",
        "non-covid",
        "0",
    ):
        assert is_like_negative(name)
    for name in ("positive", "pos", "nodule", "1", "malignant", "notch", "tumor", "neoplasm"):
        assert not is_like_negative(name)


@pytest.mark.parametrize("kind", ["folder", "manifest"])
def test_it_is_refused_before_anything_is_decoded(folder: Path, kind: str) -> None:
    root = write_folder(folder / "d", counts={"train": 4, "val": 4})
    if kind == "folder":
        for split in ("train", "val"):
            (root / "A" / split / "pos").rename(root / "A" / split / "+ve")
    else:
        lines = [
            f"{path.relative_to(root)},{'=ve' if 'pos' in path.parts else 'neg'},A"
            for path in sorted(root.rglob("*.png"))
        ]
        (root / "manifest.csv").write_text("path,label,modality\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"class '[+=]ve': spreadsheets run"):
        load_dataset(DataConfig(root_dir=str(root)), folder / "cache")
    assert not (folder / "cache").exists()
