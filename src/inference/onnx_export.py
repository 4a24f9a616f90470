"""Export a trained model to an ONNX file that takes pixels and returns probabilities."""

import json
from pathlib import Path

import numpy as np
import torch

from ..errors import ClaimError
from ..models.serving import ServingModel
from ..utils.console import silenced
from ..utils.io import atomic_write_bytes
from .load_model import TrainedModel

_INPUT, _OUTPUT = "pixels", "probabilities"
_TALKATIVE = ("torch.onnx", "onnxscript", "torch.export")
_TOLERANCE = 1e-4
_CHECKED = (1, 5)  # batch sizes other than that of the export


def export_onnx(trained: TrainedModel, path: Path, work: Path) -> float:
    """Export the served model (preprocessing, network, softmax) and check it with onnxruntime.

    The file's metadata hold the name, the classes and the threshold of the model, as JSON.

    Args:
        trained: The model, on the CPU.
        path: The file to write.
        work: Folder for temporary files.

    Returns:
        The largest difference between the probabilities of the file and of the network, on noise with the
        mean and the standard deviation of the images.

    Raises:
        ClaimError: The difference exceeds 1e-4, so nothing was written; or torch cannot export the model.
    """
    import onnx

    served, spec = ServingModel(trained.network.model, trained.network.spec), trained.network.spec
    example = torch.zeros((2, spec.channels, spec.size, spec.size), dtype=torch.uint8)
    draft = work / "model.onnx"
    with silenced(*_TALKATIVE):
        try:
            torch.onnx.export(
                served,
                (example,),
                draft,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes={_INPUT: {0: torch.export.Dim("batch")}},
                external_data=False,
                dynamo=True,
            )
        except Exception as error:  # torch's exporter raises many kinds
            why = str(error).strip().splitlines()[0]
            raise ClaimError(f"{trained.name}: torch cannot export it to ONNX: {why}") from None
    model = onnx.load(draft)
    about = {"name": trained.name, "classes": list(trained.classes), "threshold": trained.threshold}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    content = model.SerializeToString()
    difference = _difference(served, content, (spec.channels, spec.size, spec.size))
    if not difference <= _TOLERANCE:
        raise ClaimError(
            f"{trained.name}: the probabilities of the ONNX export differ by {difference:.1e}; nothing was "
            "written"
        )
    atomic_write_bytes(path, content)
    return difference


def _difference(served: ServingModel, content: bytes, shape: tuple[int, int, int]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    random, found = np.random.default_rng(0), 0.0
    mean, std = served.mean.numpy()[0], served.std.numpy()[0]
    for count in _CHECKED:
        noise = mean + std * random.standard_normal((count, *shape), dtype=np.float32)
        pixels = (255 * noise).clip(0, 255).astype(np.uint8)
        with torch.inference_mode():
            own = served(torch.from_numpy(pixels)).numpy()
        (given,) = session.run([_OUTPUT], {_INPUT: pixels})
        found = max(found, float(np.abs(given - own).max()))
    return found
