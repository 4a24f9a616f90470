"""What a training has left, so that two trainings can be compared."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from ..tracking import names
from ..tracking.liveness import read_resumable
from ..tracking.stored_run import metric_points
from ..training.checkpoint import CheckpointStore, load_checkpoint
from ..training.run_folder import RunFolders
from ..utils.io import sha256

_CLOCK = frozenset({"epoch_seconds", "images_per_second"})
"""Metrics that measure the machine."""


def outcome(folders: RunFolders) -> dict[str, str]:
    """Digests of all that a training leaves and that its interruptions must not change.

    Args:
        folders: Those of the run; the store is the one that is open.

    Returns:
        For each thing a short digest, or the thing itself where that is short.

    Raises:
        DataError: A checkpoint cannot be opened.
        OSError: A file is missing.
    """
    store = CheckpointStore(folders.checkpoints)
    latest, best = load_checkpoint(store.latest), load_checkpoint(store.best)
    known = read_resumable(latest["run_id"])
    return {
        "status": known.status,
        "latest.pth weights": digest(latest["model_state_dict"]),
        "best_model.pth weights": digest(best["model_state_dict"]),
        **_raw(latest),
        "optimizer and schedule": digest([latest[f"{name}_state_dict"] for name in _STEPPING]),
        "best epoch, val AUC": f"{latest['best_epoch']}, {latest['best_val_auc']}",
        folders.history.name: _short(folders.history.read_bytes()),
        **{
            f"{names.PREDICTIONS}/{path.name}": _short(path.read_bytes())
            for path in sorted((folders.results / names.PREDICTIONS).iterdir())
        },
        **_recorded(latest["run_id"]),
        "logged models": str(len(known.models)),
    }


def _raw(latest: Mapping[str, Any]) -> dict[str, str]:
    """The weights that are trained, where those that count are their moving average."""
    raw = latest.get("trained_model_state_dict")
    return {} if raw is None else {"weights not averaged": digest(raw)}


_STEPPING = ("optimizer", "scheduler", "scaler")


def _recorded(run_id: str) -> dict[str, str]:
    points = {name: found for name, found in metric_points(run_id).items() if name not in _CLOCK}
    points = {name: found for name, found in points.items() if not name.startswith("system/")}
    steps = [(name, step) for name, found in points.items() for step, _ in found]
    return {
        "metrics in MLflow": f"{_short(json.dumps(points).encode())}, {len(steps)} values",
        "metrics told twice": str(len(steps) - len(set(steps))),
    }


def digest(value: Any) -> str:  # noqa: ANN401
    """A short digest of nested plain values and tensors; equal where every bit is."""
    hashed = hashlib.sha256()
    _feed(hashed, value)
    return hashed.hexdigest()[:12]


def _feed(hashed: "hashlib._Hash", value: Any) -> None:  # noqa: ANN401
    if isinstance(value, torch.Tensor):
        hashed.update(f"{value.dtype} {tuple(value.shape)}".encode())
        # As bytes: unlike ==, they tell 0.0 from -0.0, and a NaN is itself.
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
