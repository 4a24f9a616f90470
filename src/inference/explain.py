"""Draw Grad-CAM overlays of the most wrong and the most confident decisions."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ModelError
from ..evaluation.metrics import decide
from ..evaluation.plots import new_figure, readable
from ..models.forward import eval_mode
from ..models.input_spec import unit_range
from ..utils.runtime import to_device
from .evaluator import EvaluationResult
from .load_model import TrainedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FINE, _COARSEST = 4, 2
_PER_ROW = 6
# Transformers: gradients averaged over tokens give no useful map.
_UNSERVED = ("vit_", "swin")


@dataclass(frozen=True)
class Layer:
    """A layer for Grad-CAM: its path, and height and width of its feature map."""

    path: str
    height: int
    width: int


def check_explainable(trained: TrainedModel) -> Layer:
    """Return the last layer with a feature map of at least 4 x 4, else the last with at least 2 x 2.

    Raises:
        ModelError: No layer is large enough, or Grad-CAM does not suit the model.
    """
    name = trained.config.model.name
    if name.startswith(_UNSERVED):
        raise ModelError(
            f"--explain: Grad-CAM needs a convolutional network, and {name} is a transformer; leave it out"
        )
    maps = _maps(trained)
    for smallest in (_FINE, _COARSEST):
        fitting = [layer for layer in maps if min(layer.height, layer.width) >= smallest]
        if fitting:
            return fitting[-1]
    size = trained.network.spec.size
    raise ModelError(f"--explain: no feature map of 2 x 2 or more in {name} at {size} px; leave it out")


def _maps(trained: TrainedModel) -> list[Layer]:
    """Return all layers that output a feature map, in the order in which they finish."""
    found: list[Layer] = []
    network = trained.network

    def record(path: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found.append(Layer(path, output.shape[2], output.shape[3]))

    with ExitStack() as hooks, eval_mode(network.model), torch.inference_mode():
        for path, module in network.model.named_modules():
            if path:
                hooks.callback(module.register_forward_hook(partial(record, path)).remove)
        shape = (1, network.spec.channels, network.spec.size, network.spec.size)
        network.model(torch.zeros(shape, device=network.device))
    return found


def grad_cam(
    trained: TrainedModel, layer: Layer, pixels: Tensor, classes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Compute Grad-CAM (Selvaraju et al., ICCV 2017), by captum.

    Args:
        trained: The model.
        layer: Layer whose feature map is weighted by its mean gradients.
        pixels: uint8 (N, C, S, S).
        classes: Class of each image whose logit is explained, (N,).

    Returns:
        float32 (N, S, S), not negative, interpolated from the layer's map.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    network = trained.network
    inputs = network.spec.normalize(unit_range(to_device(pixels, network.device)))
    with eval_mode(network.model):
        method = LayerGradCam(network.model, network.model.get_submodule(layer.path))
        target = torch.from_numpy(classes).to(network.device)
        maps = method.attribute(inputs, target, relu_attributions=True)
    size = (network.spec.size, network.spec.size)
    resized: Tensor = LayerAttribution.interpolate(maps, size, "bilinear")
    found: NDArray[np.float32] = resized.detach()[:, 0].cpu().numpy()
    return found


def most_wrong_and_confident(
    result: EvaluationResult, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the true class has the lowest probability, and where any class has the highest."""
    probabilities, labels = result.probabilities, result.labeled.labels
    own = probabilities[np.arange(len(labels)), labels]
    wrong = np.argsort(own, kind="stable")[:count]
    sure = np.argsort(-probabilities.max(axis=1), kind="stable")[:count]
    return wrong.astype(np.int64), sure.astype(np.int64)


def draw_explanation(trained: TrainedModel, layer: Layer, result: EvaluationResult, count: int) -> "Figure":
    """Draw each image above its overlay: first the most wrong decisions, then the most confident."""
    groups = dict(zip(("most wrong", "most confident"), most_wrong_and_confident(result, count), strict=True))
    rows = sum(-(-len(chosen) // _PER_ROW) for chosen in groups.values())
    figure = new_figure(1.9 * min(count, _PER_ROW) + 0.3, 4.4 * rows + 0.8)
    figure.suptitle(
        f"Grad-CAM of the decided class, {result.labeled.split}: layer {layer.path}, "
        f"map {layer.height} x {layer.width}",
        fontsize=9,
    )
    panels = figure.subfigures(len(groups), 1, squeeze=False)[:, 0]
    for panel, (name, chosen) in zip(panels, groups.items(), strict=True):
        panel.suptitle(name, fontsize=10, fontweight="bold")
        _draw_group(panel, trained, layer, result, chosen)
    return figure


def _draw_group(
    panel: "Figure", trained: TrainedModel, layer: Layer, result: EvaluationResult, chosen: NDArray[np.int64]
) -> None:
    decisions = decide(result.probabilities[chosen], trained.threshold)
    pixels = result.labeled.images.read(chosen)
    maps = grad_cam(trained, layer, pixels, decisions)
    names = readable(trained.classes)
    columns = min(len(chosen), _PER_ROW)
    axes = panel.subplots(2 * -(-len(chosen) // columns), columns, squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for i, position in enumerate(chosen):
        row, column = 2 * (i // columns), i % columns
        image, peak = _shown(pixels[i]), float(maps[i].max())
        for axis in (axes[row, column], axes[row + 1, column]):
            axis.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=255)
        heat = maps[i] / peak if peak > 0 else maps[i]
        axes[row + 1, column].imshow(heat, cmap="inferno", alpha=0.5, vmin=0, vmax=1)
        label = names[result.labeled.labels[position]]
        probability = result.probabilities[position, decisions[i]]
        axes[row, column].set_title(
            f"is {label}\ndecided {names[decisions[i]]}\np = {probability:.3f}", fontsize=7
        )


def _shown(pixels: Tensor) -> NDArray[np.uint8]:
    """Return RGB as (S, S, 3), or else the first channel as (S, S)."""
    array: NDArray[np.uint8] = pixels.numpy()
    return array.transpose(1, 2, 0) if len(array) == 3 else array[0]
