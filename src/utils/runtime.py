"""The process: device, precision, threads, seeds, determinism and stop signals."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

SignalHandler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
Precision = Literal["auto", "float32", "bfloat16", "float16"]


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a scheduler's or an operator's request, and a closed terminal."""


class Stopped(BaseException):
    """The process was asked to end by one of `_STOP_SIGNALS`.

    A ``BaseException``, like ``KeyboardInterrupt``, so that no ``except Exception`` catches it. A note
    (``add_note``) says how to continue.
    """

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")


class _Stop:
    """Pending signal, and how many `uninterrupted` blocks delay it."""

    depth = 0
    pending: int | None = None
    is_ending = False
    second: "SignalHandler" = signal.SIG_DFL


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay `Stopped` to the end of the block, so that related writes are not separated."""
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
        Stopped: A signal is pending.
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
    """Return whether this process was asked to end, so that threads must finish at once."""
    return _Stop.is_ending


def ignore_stops() -> None:
    """Ignore further stop signals, as this process is about to end; Ctrl-C ends it at once."""
    _Stop.is_ending = True
    # At Ctrl-C, `mlflow run` also sends SIGTERM to its child, which is already ending its run by then.
    for number in _STOP_SIGNALS:
        signal.signal(number, _Stop.second if number == signal.SIGINT else signal.SIG_IGN)


@contextmanager
def stop_signals(second: "SignalHandler" = signal.SIG_DFL) -> Iterator[None]:
    """Raise `Stopped` at the first stop signal in the block; a second Ctrl-C ends the process at once.

    SIGHUP stays ignored if ``nohup`` has set it so. Outside of the main thread, where Python does not allow
    to handle signals, they stay as they are.

    Args:
        second: What a second Ctrl-C does.
    """
    _Stop.depth, _Stop.pending, _Stop.is_ending, _Stop.second = 0, None, False, second
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        ignore_stops()
        if _Stop.depth:
            _Stop.pending = number
            return
        raise Stopped(number)

    is_detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    watched = [number for number in _STOP_SIGNALS if not (number == signal.SIGHUP and is_detached)]
    before = {number: signal.signal(number, stop) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disable Python's garbage collector within the block, and exclude the objects created in it afterwards.

    Imports create millions of permanent objects; scanning them again and again takes a quarter of the start
    of a command.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()  # else the next collection would scan all of them
            gc.enable()


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and its container's quota."""
    from joblib import cpu_count

    return int(cpu_count())


def fit_threads(sharing: int = 1) -> None:
    """Limit torch's threads to the usable cores: torch counts those of the host, not of the container.

    The user's ``OMP_NUM_THREADS`` has priority, except for the value 1 in a distributed training, which
    ``torchrun`` sets by default. There the ranks divide the cores.

    Args:
        sharing: Number of ranks on this machine.
    """
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    if sharing > 1 and threads == "1":
        torch.set_num_threads(max(1, usable_cores() // sharing))
    elif threads is None:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed derived from whole numbers such as ``(seed, epoch, rank)``.

    Each random stream is derived from its place in the run, so that a resumed run continues exactly without
    the state of any generator.

    Source: NumPy's ``SeedSequence`` (O'Neill's ``seed_seq`` mixing).
    """
    import numpy as np  # not at the top: --help need not wait for it

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(*parts: int) -> None:
    """Seed torch's global generators (dropout, weight initialization) from ``parts``.

    ``torch.manual_seed`` also prepares seeds for all devices that are not used, which takes up to a
    millisecond per step.
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
        place: Local rank in a distributed training, where each rank uses its own GPU, and MPS is not
            possible; None for a single process.

    Raises:
        ConfigError: The device is not available.
    """
    import torch

    if place is not None:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name not in ("cpu", "cuda"):
            raise ConfigError(
                f"training.device: {name} is a single device, and several processes train; use auto"
            )
        name = f"cuda:{place}" if name == "cuda" else name
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    kind, _, index = name.partition(":")
    if not available[kind] or (index and int(index) >= torch.cuda.device_count()):
        names = ", ".join(device for device, is_available in available.items() if is_available)
        raise ConfigError(f"training.device: {name} is not available here; use auto or one of: {names}")
    return torch.device(name)


def to_device(values: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a batch to the device; to a GPU asynchronously."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # the copy is asynchronous only from pinned memory
    return values.to(device, non_blocking=True)


def pick_autocast(precision: Precision, device: "torch.device") -> "torch.dtype | None":
    """Return the dtype of mixed precision on ``device``, or None for plain float32.

    ``auto`` is bfloat16 if the hardware supports it. On a CPU without AVX512-bf16 or AMX it is float32,
    because bfloat16 is more than ten times slower there.

    Raises:
        ConfigError: float16 is requested on a device other than CUDA.
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


@contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Let torch use only deterministic algorithms within the block, if ``enabled``."""
    import torch

    if not enabled:
        yield
        return
    # cuBLAS is deterministic only with this set before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic  # its type hides the attribute
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # By default every new tensor is filled with NaN: 2 to 4 % of a step of ResNet-18 on a CPU.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def environment(device: "torch.device | None" = None) -> dict[str, Any]:
    """Return what results depend on besides config and data: versions, number of threads, device."""
    import platform

    import numpy as np
    import torch

    from .torchvision_import import torchvision

    is_gpu = device is not None and device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if is_gpu else getattr(device, "type", "cpu"),
        "platform": platform.platform(terse=True),
    }
