"""torchvision's ImageNet weights: from the cache of torch.hub, else from the network, never hanging."""

import contextlib
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from src.errors import ModelError
from src.utils.torchvision_import import torchvision

_ANSWER_SECONDS = 4.0
_PROBE_BYTES = 1 << 20
_PATIENCE_SECONDS = 8.0


def imagenet_state(name: str, *, patient: bool) -> dict[str, Any]:
    """Reads the ImageNet weights of a model, fetching them on first use.

    Args:
        name: The name of a torchvision model.
        patient: Whether to wait for a download that takes longer than a few seconds.

    Returns:
        The state dict.

    Raises:
        ModelError: If they are neither cached nor to be had from the network; it names the remedies.
    """
    url = str(torchvision.models.get_model_weights(name).DEFAULT.url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        if not file.exists():
            _check_speed(url, patient=patient)
        # torch.hub downloads to a file of its own name, checks the hash and renames: processes that
        # fetch at once do no harm. It announces the download on stdout, which is for results.
        with _network_timeout(), contextlib.redirect_stdout(sys.stderr):
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except Exception as error:  # a broken file or download raises errors of a dozen kinds
        done = "read" if file.exists() else "fetched"
        raise ModelError(
            f"ImageNet weights of {name} could not be {done} ({_reason(error)}): put the file {file.name} "
            f"from {url} into the folder {file.parent}, set model.weights=none, or set model.weights to the "
            "path of a state dict."
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """Lets a stalled download fail: torch.hub takes no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_ANSWER_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_speed(url: str, *, patient: bool) -> None:
    """Raises OSError unless the server answers within seconds and, for the impatient, is fast.

    A thread of its own holds the deadline: name servers that do not answer and hosts with many
    addresses each take their own timeout, one after the other.
    """
    result: list[float | Exception] = []

    def ask() -> None:
        try:
            result.append(_expected_seconds(url))
        except (OSError, HTTPException, ValueError) as error:
            result.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    answer = result[0] if result else TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s")
    if isinstance(answer, Exception):
        raise answer
    if answer > _PATIENCE_SECONDS and not patient:
        raise TimeoutError(f"about {answer:.0f} s of download, which only model.weights=imagenet waits for")


def _expected_seconds(url: str) -> float:
    """Reads the beginning of a download and tells how long all of it would take."""
    with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as response:
        start = time.monotonic()
        received = len(response.read(_PROBE_BYTES))
        total = int(response.headers.get("Content-Length") or received)
    return (time.monotonic() - start) * total / max(received, 1)
