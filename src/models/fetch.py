"""torchvision's ImageNet weights: from the cache of torch.hub, else from the network."""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from ..errors import ModelError
from ..utils.torchvision_import import torchvision

_TIMEOUT_SECONDS = 15.0  # without a byte, as for pip


def imagenet_state(name: str) -> dict[str, Any]:
    """Read the ImageNet weights of a model, downloading them on first use.

    Args:
        name: The name of a torchvision model.

    Returns:
        The state dict.

    Raises:
        ModelError: They are neither in the cache nor to be had from the network; names the remedies.
    """
    url = str(torchvision.models.get_model_weights(name).DEFAULT.url)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        # torch.hub downloads to a file of its own name, checks the hash and renames: processes that
        # fetch at once do no harm. It announces the download on stdout, which is for results.
        with _network_timeout(), contextlib.redirect_stdout(sys.stderr):
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except Exception as error:  # a broken file or download raises errors of a dozen kinds
        raise ModelError(_explain(name, url, file, error)) from error


def _explain(name: str, url: str, file: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if file.exists():
        problem = f"The ImageNet weights of {name} in {file} cannot be read ({reason}); delete the file or"
    else:
        problem = f"The ImageNet weights of {name} cannot be downloaded ({reason});"
    return (
        f"{problem} put {url} at {file}. --set model.weights=none trains from random weights instead, and "
        "--set model.weights=FILE starts from a state dict."
    )


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """Let a stalled download fail: torch.hub takes no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
