"""Changes to a torchvision classifier: stem (the first convolution), pooling, and what its head is."""

import math

import torch
from torch import Tensor, nn

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and std per channel of pixels in [0, 1]."""
# What a stem for small images is, by the first part of the model's name: the size and stride of
# the first convolution, and the max-pool that goes. Families that stride their 3x3 stem keep its
# filters and lose the stride; those that cut the image into patches of 4 cut it into patches of 2.
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
    """Names the families that have a stem for small images."""
    return sorted(_SMALL_STEMS)


def has_small_stem(name: str) -> bool:
    """Says whether the model's family has a stem for small images."""
    return name.startswith(tuple(_SMALL_STEMS))


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Returns the path and the module of the convolution that sees the image."""
    return next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))


def head_path(model: nn.Module) -> str:
    """Returns the path of the layer that gives the logits (SqueezeNet's is a convolution)."""
    paths = [path for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return str(paths[-1])


def set_stem(model: nn.Module, name: str, *, channels: int, small: bool) -> None:
    """Makes the first convolution fit the channel count and, where asked, small images.

    A convolution that already fits is left alone; a new one starts from random filters.
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
    _initialise_like(new, old)
    model.set_submodule(path, new)


def _initialise_like(new: nn.Conv2d, old: nn.Conv2d) -> None:
    """Draws filters whose responses vary as much as those of the family's own random filters."""
    gain = math.sqrt(old.weight[0].numel() / new.weight[0].numel())
    nn.init.normal_(new.weight, std=old.weight.std().item() * gain)
    if new.bias is not None:
        nn.init.zeros_(new.bias)


def adapt_filters(filters: Tensor, channels: int) -> Tensor:
    """Carries trained filters over to another number of input channels, of images normalized alike.

    For one channel the filters are summed over theirs, so that a gray image gives the response of
    its own replication. For other counts they are repeated in turn and scaled by ``old / new``, so
    that an image with equal channels gives the same response wherever the counts divide. Both hold where
    mean and std are the same for all channels, old and new; for others see `adapt_stem`.

    Args:
        filters: (out, old, k, k).
        channels: The new number of input channels.

    Returns:
        (out, channels, k, k).
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
    """Carries trained filters over to other channels with another normalization; see `adapt_filters`.

    The filters are scaled by the ratio of the std. What the difference of the means adds to a response is
    returned, for the layer that follows. The response is then that of the replicated image normalized as
    the filters expect, but where a padded filter reaches over the edge of the image.

    Args:
        filters: (out, old, k, k).
        channels: The new number of input channels.
        source: Mean and std of each old channel.
        target: Mean and std of each new channel.

    Returns:
        The filters (out, channels, k, k), and what is to be added to each response, (out,).
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
    """Returns which tensor takes what `adapt_stem` adds to the responses, and with which sign.

    That is the bias of the first convolution, or, where it has none, the mean of the batch norm after it.
    """
    path, convolution = first_convolution(model)
    if convolution.bias is not None:
        return f"{path}.bias", 1.0
    layers = list(model.named_modules())
    after = layers[[name for name, _ in layers].index(path) + 1 :]
    norm = next(name for name, layer in after if isinstance(layer, nn.BatchNorm2d))
    return f"{norm}.running_mean", -1.0


class DeterministicAveragePool(nn.AdaptiveAvgPool2d):
    """Adaptive average pooling to several cells whose gradient is deterministic on a GPU, too.

    The gradient of torch's own is not, and ``torch.use_deterministic_algorithms`` refuses it. To a single
    cell torch takes the mean, which is deterministic. On a CPU this is torch's own.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Pool ``(N, C, H, W)`` to ``(N, C, *output_size)``."""
        if not images.is_cuda:
            return super().forward(images)
        return self.by_products(images)

    def by_products(self, images: Tensor) -> Tensor:
        """Pool by two matrix products, which average along the height and along the width."""
        sides, wanted = images.shape[2:], self.output_size
        assert isinstance(wanted, tuple)
        if tuple(sides) == wanted:
            return images
        rows, columns = (
            _averaging(old, old if new is None else new, images.device)
            for old, new in zip(sides, wanted, strict=True)
        )
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 has no third
            return (rows @ images.float() @ columns.T).to(images.dtype)


def _averaging(old: int, new: int, device: torch.device) -> Tensor:
    """Return the matrix ``(new, old)`` whose rows average the range of places that torch averages."""
    cells, places = torch.arange(new, device=device)[:, None], torch.arange(old, device=device)
    inside = (places >= cells * old // new) & (places < -(-(cells + 1) * old // new))
    return inside / inside.sum(dim=1, keepdim=True)


def make_pooling_deterministic(model: nn.Module) -> None:
    """Replace adaptive pooling to more than one cell (AlexNet, VGG) by `DeterministicAveragePool`."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
            model.set_submodule(path, DeterministicAveragePool(module.output_size))
