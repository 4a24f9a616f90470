"""The champion behind MLflow's own server, asked over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.evaluation.predictions import read_predictions
from tests.conftest import clean_environment
from tests.inference.conftest import MODEL

pytestmark = pytest.mark.slow


def ask(port: int, pixels: list[Any]) -> list[list[float]]:
    body = json.dumps({"inputs": pixels}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[list[float]] = json.load(answer)["predictions"]
    return found


def test_a_batch_of_pixels_gets_its_probabilities(trained: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}_A@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    with (trained / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, env=clean_environment(trained / "torch"), stdout=log, stderr=log, start_new_session=True
        )
    given: list[list[float]] = []
    try:
        files = sorted((trained / "d/A/test").rglob("*.png"))
        pixels = [[np.asarray(Image.open(file)).tolist()] for file in files]
        for _ in range(240):
            assert process.poll() is None, (trained / "serve.log").read_text()
            try:
                given = ask(port, pixels)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    stored = read_predictions(Path("outputs/first/predictions/test.csv")).probabilities
    assert np.abs(np.sort(np.array(given)[:, 1]) - np.sort(stored[:, 1])).max() < 1e-5
