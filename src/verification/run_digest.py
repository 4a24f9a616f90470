"""Digests of everything that a training writes, so that two training runs can be compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ..evaluation.metric_names import BEST_EPOCH, BEST_VAL_AUC
from ..tracking import names
from ..tracking.liveness import read_resumable
from ..tracking.stored_run import metric_points
from ..training.checkpoint import CheckpointStore, load_checkpoint
from ..training.recorder import TIMING_METRICS
from ..training.run_folder import RunFolders
from ..utils.io import sha256


def run_digest(folders: RunFolders) -> dict[str, str]:
    """Return digests of everything that a training writes and that interruptions must not change.

    Args:
        folders: Folders of the run, which must be in the open store.

    Returns:
        A short digest by the name of each part, or the value itself if it is short.

    Raises:
        DataError: A checkpoint cannot be loaded.
        OSError: A file is missing.
    """
    store = CheckpointStore(folders.checkpoints)
    latest, best = load_checkpoint(store.latest), load_checkpoint(store.best)
    known, trained = read_resumable(latest["run_id"]), latest.get("trained_model_state_dict")
    return {
        "status": known.status,
        "latest.pth weights": digest(latest["model_state_dict"]),
        "best_model.pth weights": digest(best["model_state_dict"]),
        # With a moving average, the saved model is not the one that is trained.
        **({} if trained is None else {"weights not averaged": digest(trained)}),
        "optimizer and schedule": digest(
            [latest[f"{name}_state_dict"] for name in ("optimizer", "scheduler", "scaler")]
        ),
        "best epoch, val AUC": f"{latest[BEST_EPOCH]}, {latest[BEST_VAL_AUC]}",
        folders.history.name: _short(folders.history.read_bytes()),
        **{
            f"{names.PREDICTIONS}/{path.name}": _short(path.read_bytes())
            for path in sorted((folders.results / names.PREDICTIONS).iterdir())
        },
        **_logged_metrics(latest["run_id"]),
        "logged models": str(len(known.models)),
    }


def _logged_metrics(run_id: str) -> dict[str, str]:
    points = {name: found for name, found in metric_points(run_id).items() if name not in TIMING_METRICS}
    points = {name: found for name, found in points.items() if not name.startswith(names.SYSTEM_PREFIX)}
    steps = [(name, step) for name, found in points.items() for step, _ in found]
    return {
        "metrics in MLflow": f"{_short(json.dumps(points).encode())}, {len(steps)} values",
        "metrics logged twice": str(len(steps) - len(set(steps))),
    }


def digest(value: Any) -> str:  # noqa: ANN401
    """Return a short digest of nested plain values and tensors; equal if every bit is equal."""
    hashed = hashlib.sha256()
    _feed(hashed, value)
    return hashed.hexdigest()[:12]


def _feed(hashed: "hashlib._Hash", value: Any) -> None:  # noqa: ANN401
    if isinstance(value, torch.Tensor):
        hashed.update(f"{value.dtype} {tuple(value.shape)}".encode())
        # As bytes: unlike ==, they distinguish 0.0 from -0.0, and a NaN equals itself.
        hashed.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            hashed.update(repr(key).encode())
            _feed(hashed, item)
    elif isinstance(value, list | tuple):
        hashed.update(f"{len(value)}".encode())
        for item in value:
            _feed(hashed, item)
    else:
        hashed.update(repr(value).encode())


def _short(data: bytes) -> str:
    return sha256(data)[:12]
