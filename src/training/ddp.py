"""One model in several processes: gradients become the mean over all, and batch norm may see all images."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..models.forward import Network


def replicated(network: Network) -> Network:
    """The network whose every backward pass ends with the mean gradient of all processes.

    What is trainable must not change afterwards. Weights and buffers become those of the first process.
    """
    if not network.processes.are_several:
        return network
    place = [network.device] if network.device.type == "cuda" else None
    replica = replace(
        network,
        model=DistributedDataParallel(
            network.model,
            device_ids=place,
            forward_sync_buffers=False,  # the first process's count; others get them before they validate
            gradient_as_bucket_view=True,
        ),
    )
    _settle(replica)
    return replica


def unreduced(model: nn.Module) -> AbstractContextManager[None]:
    """A block whose backward passes keep their gradients to themselves, to go with those of the next."""
    if isinstance(model, DistributedDataParallel):
        context: AbstractContextManager[None] = model.no_sync()
        return context
    return nullcontext()


def _settle(replica: Network) -> None:
    """Runs a step that changes nothing.

    After its first backward pass a replica lays its gradients out anew, in the order in which they came.
    With three processes and more the layout decides in which order they are added: a resumed run would
    differ from one that was not interrupted.
    """
    buffers = [buffer.clone() for buffer in replica.model.buffers()]
    spec = replica.spec
    images = torch.zeros(2, spec.channels, spec.size, spec.size, device=replica.device)
    with torch.autocast(replica.device.type, replica.autocast, replica.autocast is not None):
        replica.model(images.contiguous(memory_format=torch.channels_last)).float().sum().backward()
    for parameter in replica.model.parameters():
        parameter.grad = None
    for buffer, before in zip(replica.model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether some layer normalises by the images it sees together."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norms that see the images of all processes; weights and names stay."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for name, child in list(model.named_children()):
        setattr(model, name, _SyncedBatchNorm.of(child) if isinstance(child, nn.BatchNorm2d) else child)
        synchronized(child, device)
    return model


class _SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on any device; torch's own knows GPUs only.

    A process may have no image of a batch.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "_SyncedBatchNorm":
        synced = cls.__new__(cls)
        synced.__dict__ = norm.__dict__
        return synced

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.float()
        count = torch.tensor(float(values.numel() // self.num_features), device=values.device)
        dist.all_reduce(count)
        # Two sums, for the difference of the squares' mean and the mean's square loses digits.
        mean = _sum_over_all(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum_over_all(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None  # torchvision's norms keep all three
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SumOverAll(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:  # noqa: ANN401
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        # Each process's loss depends on the total, so what it takes back is the sum over all of them.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_all(values: Tensor) -> Tensor:
    total: Tensor = _SumOverAll.apply(values)  # type: ignore[no-untyped-call]
    return total
