import functools
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.utils.torchvision_import import torchvision

Publish = Callable[[Mapping[str, Tensor]], str]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(0.1)  # so that clients that start together overlap
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torch.hub keeps weights, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def set_url(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets where the ImageNet weights of resnet18 are found."""
    entry = torchvision.models.ResNet18_Weights.DEFAULT.value
    return lambda url: monkeypatch.setattr(entry, "url", url)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the folder ``tmp_path/served``; gives its address."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(_Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def publish(tmp_path: Path, server: str, set_url: Callable[[str], None]) -> Publish:
    """Serves a state dict under a name with its hash, as the ImageNet weights of resnet18."""

    def put(state: Mapping[str, Tensor]) -> str:
        file = tmp_path / "served" / "plain.pth"
        torch.save(dict(state), file)
        name = f"resnet18-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
        file.rename(file.with_name(name))
        set_url(f"{server}/{name}")
        return name

    return put
