"""Find and change the stem (first convolution), the head and the pooling of a torchvision classifier."""

import math

import torch
from torch import Tensor, nn

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std per channel of pixels in [0, 1]."""
# Stems for small images by the prefix of the model's name: kernel size and stride of the first convolution,
# and the max-pool that is removed. Families with a 3x3 stem keep its filters and get stride 1; those with
# patches of 4 pixels get patches of 2.
_SMALL_STEMS: dict[str, tuple[int, int, str | None]] = {
    "resnet": (3, 1, "maxpool"),
    "resnext": (3, 1, "maxpool"),
    "wide_resnet": (3, 1, "maxpool"),
    "densenet": (3, 1, "features.pool0"),
    "shufflenet": (3, 1, "maxpool"),
    "mobilenet": (3, 1, None),
    "mnasnet": (3, 1, None),
    "efficientnet": (3, 1, None),
    "regnet": (3, 1, None),
    "swin": (2, 2, None),
    "convnext": (2, 2, None),
}


def small_stem_families() -> list[str]:
    """Return the families that have a stem for small images."""
    return sorted(_SMALL_STEMS)


def has_small_stem(name: str) -> bool:
    """Return whether the model's family has a stem for small images."""
    return name.startswith(tuple(_SMALL_STEMS))


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the path and the module of the first convolution."""
    return next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))


def head_path(model: nn.Module) -> str:
    """Return the path of the layer that returns the logits (a convolution in SqueezeNet)."""
    paths = [path for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return str(paths[-1])


def set_stem(model: nn.Module, name: str, *, channels: int, small: bool) -> None:
    """Adapt the first convolution to the number of channels and, if ``small``, to small images.

    A convolution that already fits is kept; a new one starts from random filters.
    """
    path, old = first_convolution(model)
    kernel, stride, padding = old.kernel_size[0], old.stride[0], int(old.padding[0])
    if small:
        kernel, stride, pool = next(stem for f, stem in _SMALL_STEMS.items() if name.startswith(f))
        padding = kernel // 2 if stride == 1 else 0
        if pool is not None:
            model.set_submodule(pool, nn.Identity())
    if (channels, kernel) == (old.in_channels, old.kernel_size[0]):
        old.stride = (stride, stride)
        return
    bias = old.bias is not None
    new = nn.Conv2d(channels, old.out_channels, kernel, stride=stride, padding=padding, bias=bias)
    _initialize_like(new, old)
    model.set_submodule(path, new)


def _initialize_like(new: nn.Conv2d, old: nn.Conv2d) -> None:
    """Draw filters whose responses have the variance of the original random filters."""
    gain = math.sqrt(old.weight[0].numel() / new.weight[0].numel())
    nn.init.normal_(new.weight, std=old.weight.std().item() * gain)
    if new.bias is not None:
        nn.init.zeros_(new.bias)


def adapt_filters(filters: Tensor, channels: int) -> Tensor:
    """Adapt trained filters (out, old, k, k) to ``channels`` input channels with the same normalization.

    For one channel the filters are summed over their channels, so that a gray image has the response of its
    RGB copy. For other numbers they are repeated in turn and scaled by ``old / new``, so that an image with
    equal channels has the same response if one number divides the other. Both require the same mean and std
    for all channels, old and new; otherwise see `adapt_stem`.
    """
    old = filters.shape[1]
    if channels == old:
        return filters
    if channels == 1:
        return filters.sum(dim=1, keepdim=True)
    return filters[:, [c % old for c in range(channels)]] * (old / channels)


def adapt_stem(
    filters: Tensor, channels: int, source: Normalization, target: Normalization
) -> tuple[Tensor, Tensor]:
    """Adapt trained filters to other channels with another normalization; see `adapt_filters`.

    The filters are scaled by the ratio of the stds. The difference of the means shifts the responses; the
    shift is returned, to be added in the following layer. The response is then that of the replicated image
    with the normalization that the filters expect, except where padding is involved.

    Args:
        filters: (out, old, k, k).
        channels: The new number of input channels.
        source: Mean and std of each old channel.
        target: Mean and std of each new channel.

    Returns:
        The filters (out, channels, k, k) and the shift of each response, (out,).
    """
    old = filters.shape[1]
    (old_mean, old_std), (mean, std) = (
        tuple(torch.tensor(values, dtype=filters.dtype).view(1, -1, 1, 1) for values in each)
        for each in (source, target)
    )
    if channels == 1:
        scaled, shift = filters * (std / old_std), filters * ((mean - old_mean) / old_std)
        return scaled.sum(dim=1, keepdim=True), shift.sum(dim=(1, 2, 3))
    taken = [c % old for c in range(channels)]
    kept, old_mean, old_std = filters[:, taken] * (old / channels), old_mean[:, taken], old_std[:, taken]
    return kept * (std / old_std), (kept * ((mean - old_mean) / old_std)).sum(dim=(1, 2, 3))


def shifted_by_stem(model: nn.Module) -> tuple[str, float]:
    """Return the tensor to which the shift of `adapt_stem` is added, and its sign.

    It is the bias of the first convolution or, without a bias, the mean of the following batch norm.
    """
    path, convolution = first_convolution(model)
    if convolution.bias is not None:
        return f"{path}.bias", 1.0
    layers = list(model.named_modules())
    after = layers[[name for name, _ in layers].index(path) + 1 :]
    norm = next(name for name, layer in after if isinstance(layer, nn.BatchNorm2d))
    return f"{norm}.running_mean", -1.0


class DeterministicAveragePool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling to several cells with a gradient that is deterministic on GPUs, too.

    torch's gradient is not, and ``torch.use_deterministic_algorithms`` refuses it. Pooling to a single cell
    is a mean, which is deterministic. On a CPU this class uses torch's implementation.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Pool ``(N, C, H, W)`` to ``(N, C, *output_size)``."""
        if not images.is_cuda:
            return super().forward(images)
        return self.by_products(images)

    def by_products(self, images: Tensor) -> Tensor:
        """Pool with two matrix products, one for the height and one for the width."""
        sides, wanted = images.shape[2:], self.output_size
        assert isinstance(wanted, tuple)
        if tuple(sides) == wanted:
            return images
        rows, columns = (
            _averaging(old, old if new is None else new, images.device)
            for old, new in zip(sides, wanted, strict=True)
        )
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 cannot represent 1/3
            return (rows @ images.float() @ columns.T).to(images.dtype)


def _averaging(old: int, new: int, device: torch.device) -> Tensor:
    """Return the matrix ``(new, old)`` whose rows average the same ranges as torch."""
    cells, places = torch.arange(new, device=device)[:, None], torch.arange(old, device=device)
    inside = (places >= cells * old // new) & (places < -(-(cells + 1) * old // new))
    return inside / inside.sum(dim=1, keepdim=True)


def make_pooling_deterministic(model: nn.Module) -> None:
    """Replace adaptive pooling to more than one cell (AlexNet, VGG) by `DeterministicAveragePool`."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
            model.set_submodule(path, DeterministicAveragePool(module.output_size))
