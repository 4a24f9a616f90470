"""Features by the real command."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from src import extract
from src.evaluation.predictions import read_predictions
from src.inference.load_model import load_trained
from src.inference.model_reference import ModelReference
from src.models.build import build_model
from src.models.forward import extract_features
from src.models.input_spec import InputSpec
from tests.inference.conftest import MODEL, NAMED

pytestmark = pytest.mark.slow


def test_features_are_what_the_last_layer_takes(trained: Path, folder: Path) -> None:
    assert extract.main([*NAMED, "--input", str(trained / "d/A/test"), "--output", "f.parquet"]) == 0
    table = pd.read_parquet("f.parquet").set_index("sample")
    columns = [name for name in table if name.startswith("f")]
    assert (len(table), len(columns)) == (16, 1024)
    assert list(table.columns[:3]) == ["image", "patient", "label"]
    head = load_trained(ModelReference(MODEL, "A"), folder, "cpu").network.model.fc
    assert isinstance(head, nn.Linear)
    with torch.inference_mode():
        probabilities = head(torch.from_numpy(table[columns].to_numpy().copy())).softmax(1).numpy()
    stored = read_predictions(Path("outputs/first/predictions/test.csv"))
    own = dict(zip(stored.samples, stored.probabilities, strict=True))
    assert np.abs(probabilities - np.array([own[sample] for sample in table.index])).max() < 1e-5
    again = make_pipeline(StandardScaler(), LogisticRegression()).fit(table[columns], table["label"])
    assert again.score(table[columns], table["label"]) > 0.9


def test_an_array_with_a_table_beside_it(trained: Path) -> None:
    options = [*NAMED, "--input", str(trained / "d/A/val"), "--output", "f.npy", "--layer", "stage3"]
    assert extract.main(options) == 0
    found = np.load("f.npy", allow_pickle=False)
    assert (found.shape, found.dtype) == ((16, 96), np.float32)
    assert len(pd.read_csv("f.csv")) == 16


def test_a_layer_that_is_not_there(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract.main([*NAMED, "--input", str(trained / "d"), "--layer", "layer9"]) == 2
    assert "--layer layer9: not found in the model; some of its layers are conv1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "size", "layer", "width"),
    [
        ("resnet18", 32, None, 512),
        ("resnet18", 32, "layer1", 64),
        ("squeezenet1_1", 64, None, 512),
        ("vit_b_16", 32, "encoder.layers.encoder_layer_0", 768),
        ("swin_t", 32, "features.1", 96),
        ("swin_t", 32, "features.0.0", 96),
        ("swin_t", 32, None, 768),
        ("densenet121", 32, None, 1024),
    ],
)
def test_widths_of_layers(name: str, size: int, layer: str | None, width: int) -> None:
    model = build_model(name, num_classes=2, channels=1, size=size).model
    spec = InputSpec(1, size, (0.5,), (0.5,))
    pixels = torch.randint(0, 256, (3, 1, size, size), dtype=torch.uint8)
    found = extract_features(model, spec, [pixels[:2], pixels[2:]], device=torch.device("cpu"), layer=layer)
    assert found.shape == (3, width)
