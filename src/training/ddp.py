"""DistributedDataParallel: average the gradients over all ranks, and synchronize batch norm."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from ..models.forward import ModelContext


def wrap_ddp(context: ModelContext) -> ModelContext:
    """Wrap the model in DDP, so that every backward pass ends with the mean gradient over all ranks.

    The set of trainable parameters must not change afterwards. Parameters and buffers become those of the
    main rank. A context with a single process is returned unchanged.
    """
    if not context.process_group.is_distributed:
        return context
    wrapped = replace(
        context,
        model=DistributedDataParallel(
            context.model,
            device_ids=[context.device] if context.device.type == "cuda" else None,
            forward_sync_buffers=False,  # the main rank's buffers count; they are broadcast before validation
            gradient_as_bucket_view=True,
        ),
    )
    _rebuild_buckets(wrapped)
    return wrapped


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which DDP accumulates gradients without exchanging them."""
    if isinstance(model, DistributedDataParallel):
        context: AbstractContextManager[None] = model.no_sync()
        return context
    return nullcontext()


def _rebuild_buckets(wrapped: ModelContext) -> None:
    """Run a forward and backward pass that changes nothing.

    After its first backward pass, DDP rearranges its gradient buckets in the order in which the gradients
    arrived. With three or more ranks the buckets decide the order of summation, so that a resumed run would
    differ from an uninterrupted one.
    """
    buffers = [buffer.clone() for buffer in wrapped.model.buffers()]
    spec = wrapped.spec
    images = torch.zeros(2, spec.channels, spec.size, spec.size, device=wrapped.device)
    with torch.autocast(wrapped.device.type, wrapped.autocast, wrapped.autocast is not None):
        wrapped.model(images.contiguous(memory_format=torch.channels_last)).float().sum().backward()
    for parameter in wrapped.model.parameters():
        parameter.grad = None
    for buffer, before in zip(wrapped.model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether the model has batch-norm layers."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def sync_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with its batch-norm layers replaced by `torch.nn.SyncBatchNorm`; parameters stay.

    Raises:
        ConfigError: The model has batch norm and is on a CPU, where torch has no SyncBatchNorm.
    """
    if device.type == "cpu" and has_batch_norm(model):
        raise ConfigError(
            "training.sync_batchnorm: torch.nn.SyncBatchNorm works on GPUs only, and the device is cpu; set "
            "training.sync_batchnorm=false, train on GPUs, or choose a model without batch norm"
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted
