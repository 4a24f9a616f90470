"""An ONNX file by the real command, run by onnxruntime alone."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from src import export
from src.evaluation.predictions import read_predictions
from tests.inference.conftest import NAMED

pytestmark = pytest.mark.slow


def test_it_gives_the_stored_probabilities(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([*NAMED, "--output", "m.onnx"]) == 0
    assert "takes uint8 pixels (N, 1, 32, 32), gives neg, pos" in capsys.readouterr().out
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    files = sorted((trained / "d/A/test").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file))[None] for file in files])
    (given,) = session.run(["probabilities"], {"pixels": pixels})
    stored = read_predictions(Path("outputs/first/predictions/test.csv")).probabilities
    assert np.abs(np.sort(given[:, 1]) - np.sort(stored[:, 1])).max() < 1e-5
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["neg", "pos"]
    assert 0 < json.loads(about["threshold"]) < 1
