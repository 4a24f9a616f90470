"""The run's model as MLflow keeps it: a graph in ``pt2`` format, no pickle anywhere."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from src.tracking.names import LOGGED_MODEL

if TYPE_CHECKING:
    from torch import nn


def log_model(
    module: "nn.Module",
    *,
    channels: int,
    size: int,
    classes: tuple[str, ...],
    step: int,
    metadata: dict[str, Any],
) -> str:
    """Logs a module on the active run and returns the id of the logged model.

    Args:
        module: uint8 pixels ``(N, channels, size, size)`` in, float32 probabilities ``(N, K)`` out.
        channels: Channels of the input.
        size: Side of the input in pixels.
        classes: The K class names.
        step: The epoch that the weights are from.
        metadata: Plain values that travel with the model.
    """
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, channels, size, size))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
    )
    with _silenced():
        info = mlflow.pytorch.log_model(
            module.cpu().eval(),
            name=LOGGED_MODEL,
            signature=signature,
            # Black images: an example must not be a patient's. Two, for a batch of one is exported as fixed.
            input_example=np.zeros((2, channels, size, size), dtype=np.uint8),
            serialization_format="pt2",
            # Named here, for MLflow would load the model in a second process to find out.
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.split('+')[0]}",
                "numpy",
            ],
            metadata={"classes": list(classes), **metadata},
            step=step,
        )
    return str(info.model_id)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps the exporter's and MLflow's chatter off the terminal; errors still raise."""
    names = ("mlflow", "torch.export", "torch._export")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)
