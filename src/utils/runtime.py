"""What the process runs on: device, precision, threads, seeds, signals."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from src.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Stopped(BaseException):
    """Ctrl-C or SIGTERM asked the process to end.

    Like ``KeyboardInterrupt`` it derives from ``BaseException``, so that no ``except Exception``
    on the way swallows it.
    """

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")


class _Stop:
    """What a signal has asked for, and whether the moment is right."""

    depth = 0
    pending: int | None = None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A signal within the block raises `Stopped` at its end: what belongs together stays together."""
    _Stop.depth += 1
    try:
        yield
    finally:
        _Stop.depth -= 1
    if _Stop.depth == 0 and _Stop.pending is not None:
        number, _Stop.pending = _Stop.pending, None
        raise Stopped(number)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within the block the first Ctrl-C or SIGTERM raises `Stopped`; a second Ctrl-C ends at once."""
    _Stop.depth, _Stop.pending = 0, None

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # `mlflow run` answers Ctrl-C with a SIGTERM to its child, which is busy ending its run by then.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if _Stop.depth:
            _Stop.pending = number
            return
        raise Stopped(number)

    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from whole numbers such as ``(seed, epoch, rank)``.

    Deriving every stream from its place in the run, instead of drawing from one long stream, lets a
    resumed run continue exactly without a snapshot of any generator.

    Source: NumPy's ``SeedSequence`` (O'Neill's ``seed_seq`` mixing).
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(*parts: int) -> None:
    """Seeds torch's global generators (dropout, weight initialisation) from ``parts``."""
    import torch

    torch.manual_seed(derive_seed(*parts))


def pick_device(name: str) -> "torch.device":
    """The device called ``name``; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: The device is not there.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    kind, _, index = name.partition(":")
    if not available[kind] or (index and int(index) >= torch.cuda.device_count()):
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError(f"training.device: {name} is not available here; use auto or one of: {there}")
    return torch.device(name)


def pick_autocast(precision: Precision, device: "torch.device") -> "torch.dtype | None":
    """The dtype of mixed precision on ``device``, or None for plain float32.

    ``auto`` takes bfloat16 where the hardware has it. A CPU without AVX512-bf16 or AMX runs
    bfloat16 more than ten times slower than float32, so there it stays with float32.

    Raises:
        ConfigError: float16 on a CPU, which has no loss scaling here.
    """
    import torch

    if precision == "float16" and device.type != "cuda":
        raise ConfigError("training.precision: float16 needs a CUDA device; use auto, float32 or bfloat16")
    if precision != "auto":
        return None if precision == "float32" else getattr(torch, precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    return None


def device_name(device: "torch.device") -> str:
    """The card's name, or the kind of any other device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Within the block torch uses deterministic algorithms only, if ``enabled``."""
    import torch

    if not enabled:
        yield
        return
    # cuBLAS is deterministic only with this set before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def environment(device: "torch.device | None" = None) -> dict[str, Any]:
    """What a result depends on beside config and data: versions, the number of threads, the device."""
    import platform

    import torch

    from src.utils.torchvision_import import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "device": device_name(device or torch.device("cpu")),
        "platform": platform.platform(terse=True),
    }
