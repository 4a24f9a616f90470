"""What the process runs on: device, precision, threads, seeds, signals."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or the end of its terminal (SIGHUP) asked the process to end.

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
    is_ending = False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay a signal's `Stopped` to the end of the block, so that related writes stay together."""
    _Stop.depth += 1
    try:
        yield
    finally:
        _Stop.depth -= 1
    if _Stop.depth == 0:
        raise_pending()


def pending_stop() -> int:
    """Return the signal that waits for the end of an `uninterrupted` block; 0 for none."""
    return _Stop.pending or 0


def raise_pending() -> None:
    """Raise the signal that waits for the end of an `uninterrupted` block; in any thread.

    Raises:
        Stopped: There is one.
    """
    if _Stop.pending is not None:
        number, _Stop.pending = _Stop.pending, None
        raise Stopped(number)


def answer_stop(number: int) -> Stopped:
    """Return the error to raise for a signal to this or another rank; further signals are ignored."""
    _Stop.pending = None
    ignore_stops()
    return Stopped(number)


def is_ending() -> bool:
    """Return whether this process was asked to end, so that threads do not keep it waiting."""
    return _Stop.is_ending


def ignore_stops() -> None:
    """Ignore SIGTERM and SIGHUP, as this process is about to end; Ctrl-C ends it at once."""
    _Stop.is_ending = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # `mlflow run` answers Ctrl-C with a SIGTERM to its child, which is busy ending its run by then.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise `Stopped` at the first Ctrl-C, SIGTERM or SIGHUP in the block; a second Ctrl-C ends at once.

    SIGHUP, which a terminal sends as it closes, stays ignored where ``nohup`` has made it so.
    """
    _Stop.depth, _Stop.pending, _Stop.is_ending = 0, None, False

    def stop(number: int, _frame: FrameType | None) -> None:
        ignore_stops()
        if _Stop.depth:
            _Stop.pending = number
            return
        raise Stopped(number)

    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    watched = (signal.SIGINT, signal.SIGTERM, *hangup)
    before = {number: signal.signal(number, stop) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Within the block Python does not look for reference cycles.

    Imports make objects by the million that all stay, and it looks through them again and again: a
    quarter of the start of a command. Afterwards it leaves alone what is there by then.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()  # else the next look would take what was saved
            gc.enable()


def usable_cores() -> int:
    """Cores that this process may use: a container's quota counts, and so does its affinity."""
    from joblib import cpu_count

    return int(cpu_count())


def fit_threads(sharing: int = 1) -> None:
    """Limit torch's threads to the usable cores: torch counts those of the host, not of the container.

    What the user says by ``OMP_NUM_THREADS`` stays. Processes that train together share the cores;
    ``torchrun`` would give each a single one, which it says in the same variable.

    Args:
        sharing: Processes on this machine that train together.
    """
    import torch

    said = os.environ.get("OMP_NUM_THREADS")
    if sharing > 1 and said == "1":
        torch.set_num_threads(max(1, usable_cores() // sharing))
    elif said is None:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def keep_freed_memory() -> None:
    """Lets the C library keep memory that is freed, to be used again; Linux with glibc only.

    It gives large blocks back to the kernel, which clears each page again: on a CPU, where every step
    frees and allocates the same activations, a fifth of the time. The process's memory stays at its peak.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed derived from whole numbers such as ``(seed, epoch, rank)``.

    Deriving every stream from its place in the run, instead of drawing from one long stream, lets a
    resumed run continue exactly without a snapshot of any generator.

    Source: NumPy's ``SeedSequence`` (O'Neill's ``seed_seq`` mixing).
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(*parts: int) -> None:
    """Seed torch's global generators (dropout, weight initialization) from ``parts``.

    ``torch.manual_seed`` also prepares, with a stack trace, the seeds of every kind of device that is not
    used: up to a millisecond in each step.
    """
    import torch

    seed = derive_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def pick_device(name: str, place: int | None = None) -> "torch.device":
    """Return the device called ``name``; ``auto`` prefers CUDA, then Apple's MPS, then the CPU.

    Args:
        name: As in ``training.device``.
        place: Which of the processes on this machine asks, where several train together: each takes a
            GPU of its own, and none MPS, over which they could not talk. None where it is alone.

    Raises:
        ConfigError: The device is not there.
    """
    import torch

    if place is not None:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name not in ("cpu", "cuda"):
            raise ConfigError(f"training.device: {name} is one device, and several processes train: use auto")
        name = f"cuda:{place}" if name == "cuda" else name
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    kind, _, index = name.partition(":")
    if not available[kind] or (index and int(index) >= torch.cuda.device_count()):
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError(f"training.device: {name} is not available here; use auto or one of: {there}")
    return torch.device(name)


def to_device(values: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a batch to the device; to a GPU asynchronously."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # from any other memory the copy would wait
    return values.to(device, non_blocking=True)


def pick_autocast(precision: Precision, device: "torch.device") -> "torch.dtype | None":
    """Return the dtype of mixed precision on ``device``, or None for plain float32.

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
    """Return the GPU's name, or the type of any other device."""
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
    memory: Any = torch.utils.deterministic  # typed as a module, and it is more
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Else every tensor is filled with NaN before it is computed: 2 to 4 % of a step of ResNet-18 on a CPU.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before)


def environment(device: "torch.device | None" = None) -> dict[str, Any]:
    """Return what a result depends on besides config and data: versions, number of threads, device."""
    import platform

    import torch

    from .torchvision_import import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "device": device_name(device or torch.device("cpu")),
        "platform": platform.platform(terse=True),
    }
