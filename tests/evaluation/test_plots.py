import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from src.evaluation import score_plots
from src.evaluation.auc import auc
from src.evaluation.plots import readable
from src.evaluation.score_plots import save_plots

Split = tuple[NDArray[np.int64], NDArray[np.float64]]
FILES = ["learning_curves.png", "roc.png", "precision_recall.png", "confusion_matrix.png", "calibration.png"]


def split(samples: int, classes: int, seed: int = 0) -> Split:
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    logits = generator.normal(size=(samples, classes))
    logits[np.arange(samples), labels] += 1
    odds = np.exp(logits)
    return labels, odds / odds.sum(axis=1, keepdims=True)


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {"epoch": e, "train_loss": 1 / e, "val_loss": 1.2 / e, "val_auc": 1 - 0.4 / e, "learning_rate": 1e-3}
        for e in range(1, epochs + 1)
    ]


def texts(figure: Figure) -> str:
    """Everything that a figure's legends say."""
    legends = [*figure.legends, *(legend for panel in figure.subfigs for legend in panel.legends)]
    return "\n".join(text.get_text() for legend in legends for text in legend.get_texts())


def line(axes: Axes, start: str) -> NDArray[np.float64]:
    """The points of the line whose label starts so, (N, 2)."""
    (found,) = [one for one in axes.lines if str(one.get_label()).startswith(start)]
    return np.column_stack([np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)])


@pytest.mark.parametrize(
    ("splits", "classes", "rows"),
    [
        ({"val": split(78, 2), "test": split(156, 2, 1)}, ["benign", "malignant"], history(12)),
        ({"val": split(5, 2)}, ["normal " * 20, "$x_1^"], history(1)),
        ({"val": split(60, 3), "test": split(90, 3, 1)}, ["cyst", "_tumour", "肝癌"], history(2)),
    ],
    ids=["two classes", "without test, one epoch, odd names", "three classes"],
)
def test_five_small_pictures_are_drawn(
    tmp_path: Path, splits: Mapping[str, Split], classes: list[str], rows: list[dict[str, float]]
) -> None:
    folder = tmp_path / "run" / "plots"
    paths = save_plots(folder, history=rows, best_epoch=1, splits=splits, classes=classes, threshold=0.4)
    assert paths == [folder / name for name in FILES]
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    for path in paths:
        assert path.stat().st_size < 100_000
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 350
            assert len(image.convert("L").getcolors() or []) > 20  # something is drawn
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_nan_in_history_and_probabilities_and_a_missing_class_are_survived(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"epoch": 1, "train_loss": math.nan, "val_loss": math.inf, "val_auc": math.nan},
        {"epoch": 2, "train_loss": math.nan, "val_loss": math.nan, "val_auc": math.nan},
    ]
    broken = (np.array([0, 1]), np.full((2, 2), math.nan))
    single = (np.array([1, 1, 1]), np.array([[0.3, 0.7], [0.3, 0.7], [0.6, 0.4]]))
    splits = {"val": broken, "test": single}
    paths = save_plots(tmp_path, history=rows, best_epoch=0, splits=splits, classes=["a", "b"], threshold=0.5)
    assert [path.name for path in paths] == FILES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_threads_draw_the_same_pictures_at_once(tmp_path: Path) -> None:
    def draw(name: str) -> None:
        splits = {"val": split(30, 2)}
        save_plots(
            tmp_path / name,
            history=history(3),
            best_epoch=2,
            splits=splits,
            classes=["a", "b"],
            threshold=0.5,
        )

    threads = [threading.Thread(target=draw, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_roc_names_the_area_and_marks_the_threshold_on_the_curve() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.6, 0.4, 0.7, 0.9])
    splits = {"val": (labels, np.column_stack([1 - scores, scores]))}
    figure = score_plots.curves("roc", splits, ["a", "b"], 0.3)
    assert "val: AUC 0.889 (n = 6)" in texts(figure)
    assert "val at threshold 0.3: sensitivity 1.000, specificity 0.667" in texts(figure)
    (axes,) = figure.axes
    point = line(axes, "val at threshold")
    np.testing.assert_allclose(point, [[1 / 3, 1]])
    curve = line(axes, "val: AUC")
    on_curve = curve[np.isclose(curve[:, 0], 1 / 3), 1]
    assert on_curve.min() <= point[0, 1] <= on_curve.max()
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(8 / 9)


def test_precision_recall_names_average_precision_and_prevalence() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.6, 0.4, 0.7, 0.9])
    splits = {"test": (labels, np.column_stack([1 - scores, scores]))}
    figure = score_plots.curves("precision_recall", splits, ["a", "b"], 0.5)
    expected = (1 + 1 + 3 / 4) / 3
    assert f"test: AP {expected:.3f} (n = 5)" in texts(figure)
    assert "test at threshold 0.5: precision 0.667, recall 0.667" in texts(figure)
    assert "test: prevalence 0.600" in texts(figure)
    curve = line(figure.axes[0], "test: AP")
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(expected)


def test_three_classes_have_a_curve_each_and_their_mean() -> None:
    labels, scores = split(60, 3)
    figure = score_plots.curves("roc", {"val": (labels, scores)}, ["a", "b", "c"], 0.5)
    for index, name in enumerate("abc"):
        own = np.column_stack([1 - scores[:, index], scores[:, index]])
        area = auc((labels == index).astype(np.int64), own)
        curve = line(figure.subfigs[0].axes[0], f"{name}: ")
        assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(area)
        assert f"{name}: {area:.3f}" in texts(figure)
    assert f"mean of 3: AUC {auc(labels, scores):.3f}" in texts(figure)


def test_a_class_that_is_missing_is_said_in_the_legend() -> None:
    single: Split = (np.array([1, 1]), np.array([[0.3, 0.7], [0.6, 0.4]]))
    assert "val: undefined, a class is missing" in texts(
        score_plots.curves("roc", {"val": single}, ["a", "b"], 0.5)
    )
    two_of_three: Split = (np.array([0, 1]), np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]))
    shown = texts(score_plots.curves("precision_recall", {"val": two_of_three}, ["a", "b", "c"], 0.5))
    assert "c: no samples" in shown
    assert "mean of 2: AP 1.000" in shown


def test_the_confusion_matrix_shows_counts_and_shares_of_the_row() -> None:
    labels = np.array([0, 0, 0, 1])
    scores = np.array([0.1, 0.2, 0.6, 0.9])
    splits = {"val": (labels, np.column_stack([1 - scores, scores]))}
    (axes,) = score_plots.confusion_matrices(splits, ["a", "b"], 0.5).axes
    assert [t.get_text() for t in axes.texts] == ["2\n67%", "1\n33%", "0\n0%", "1\n100%"]


def test_calibration_bins_and_scores_by_hand() -> None:
    believed = np.repeat([0.2, 0.8], 10)
    happened = np.array([True] * 3 + [False] * 7 + [True] * 6 + [False] * 4)
    bins = score_plots.calibration_bins(believed, happened)
    np.testing.assert_allclose(bins, [[0.2, 0.3, 10], [0.8, 0.6, 10]])
    assert score_plots.expected_calibration_error(bins) == pytest.approx(0.15)
    splits = {"val": (happened.astype(np.int64), np.column_stack([1 - believed, believed]))}
    brier = (3 * 0.8**2 + 7 * 0.2**2 + 6 * 0.2**2 + 4 * 0.8**2) / 20
    shown = texts(score_plots.calibration(splits, ["a", "b"]))
    assert shown == f"val: Brier score {brier:.3f}, calibration error 0.150 (bins: 2 of 10)"


def test_calibration_of_many_classes_is_about_the_decided_class() -> None:
    splits: dict[str, Split] = {"val": (np.array([0, 1]), np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]))}
    brier = ((0.4**2 + 0.3**2 + 0.1**2) + (0.6**2 + 0.7**2 + 0.1**2)) / 2
    shown = texts(score_plots.calibration(splits, ["a", "b", "c"]))
    assert shown == f"val: Brier score {brier:.3f}, calibration error 0.100 (bins: 1 of 2)"


@pytest.mark.parametrize(("samples", "bins"), [(1, 1), (29, 2), (78, 5), (1000, 10)])
def test_calibration_bins_suit_the_number_of_samples(samples: int, bins: int) -> None:
    believed = np.random.default_rng(0).random(samples)
    found = score_plots.calibration_bins(believed, believed > 0.5)
    assert len(found) == bins
    assert found[:, 2].sum() == samples
    assert found[:, 2].min() >= samples // bins - 1


def test_equal_predictions_share_one_bin() -> None:
    found = score_plots.calibration_bins(np.full(100, 0.5), np.arange(100) < 30)
    np.testing.assert_allclose(found, [[0.5, 0.3, 100]])
    saturated = score_plots.calibration_bins(np.repeat([0.0, 1.0], [5, 25]), np.arange(30) >= 10)
    np.testing.assert_allclose(saturated, [[0.0, 0.0, 5.0], [1.0, 0.8, 25.0]])
    assert score_plots.calibration_bins(np.empty(0), np.empty(0, dtype=bool)).shape == (0, 3)


def test_class_names_are_made_readable() -> None:
    shown = readable(["cyst", "metastasis of a colorectal carcinoma", "a$b", "肝癌", " "])
    assert shown == ["cyst", "metastasis of…arcinoma", r"a\$b", "class 3", "class 4"]
