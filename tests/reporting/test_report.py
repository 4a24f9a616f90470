"""The page by the real command."""

import re
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import pytest

from src import promote, report, train
from tests.conftest import FROM_SCRATCH

pytestmark = pytest.mark.slow

MODEL = "shufflenet_v2_x0_5"
TRAIN = ["--model", MODEL, "--data", "small.npz", "--epochs", "2", "--set", "training.batch_size=16"]
TRAIN += FROM_SCRATCH


class Links(HTMLParser):
    """What a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        places = ("src", "href")
        self.fetched += [value or "" for name, value in attrs if name in places and tag != "a"]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: str = "report.html") -> Links:
    found = Links()
    found.feed(Path(path).read_text())
    return found


@pytest.mark.usefixtures("sqlite")
def test_runs_champion_curves_and_history(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert npz.exists()
    for rate in ("1e-3", "1e-4"):
        assert train.main([*TRAIN, "--set", f"training.learning_rate={rate}"]) == 0
    assert train.main([*TRAIN, "--modality", "P", "--epochs", "1"]) == 0
    assert promote.main(["--modality", "A"]) == 0
    assert report.main([]) == 0
    assert "report.html: 2 groups, 3 runs" in capsys.readouterr().out
    found = page()
    assert len(found.fetched) == 2
    assert all(source.startswith("data:image/png;base64,") for source in found.fetched)
    champion = mlflow.MlflowClient().get_model_version_by_alias(f"{MODEL}_A", "champion")
    metrics = mlflow.MlflowClient().get_run(str(champion.run_id)).data.metrics
    text = re.sub(r"\s+", " ", found.text)
    assert f"Champion: version 1, run {champion.run_id}" in text
    assert f"{metrics['best_val_auc']:.4f} (" in text
    assert f"{metrics['test_auc']:.4f} (" in text
    assert "the difference is" in text
    assert "promotion" in text
    assert "Nothing is promoted: python -m src.promote --model shufflenet_v2_x0_5 --modality P" in text
    assert report.main(["--modality", "P", "--output", "p.html"]) == 0
    assert "Champion" not in page("p.html").text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "it does not exist yet"),
        (["--output", "x.pdf"], "its ending must be one of .html"),
    ],
)
def test_what_it_does_not_take(capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert report.main(options) == 2
    assert said in capsys.readouterr().err
