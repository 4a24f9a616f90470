"""Processes that ``torchrun`` starts together find each other here, and hear why one of them has ended."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

import psutil

from ..errors import MlprojectError, TrainingError
from .cli import fall_silent
from .processes import ALONE, Processes
from .runtime import Stopped, ignore_stops, uninterrupted

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_TIMEOUT = timedelta(hours=1)
"""How long one waits for another: at the first start one of them decodes all images of its machine.

A process that dies is noticed at once by its connections; this is for a machine that vanishes silently.
"""
_WHAT_NEXT = "the last checkpoint is whole: go on with --resume"
_WHY_SECONDS = 3.0  # for the one that has ended to say why, or for the system to tell that it has


class LossError(TrainingError):
    """Another of the processes that train together has ended."""


class Together:
    """The connection of one process to the others, for as long as it works with them."""

    def __init__(self, processes: Processes = ALONE, store: "Store | None" = None) -> None:
        """Wrap an initialized process group.

        Args:
            processes: Who there is.
            store: Where all can leave words for each other, kept by their launcher; None alone.
        """
        self.processes = processes
        self._store = store
        if store is not None:
            store.set(_key("process", processes.rank), f"{os.getpid()} {socket.gethostname()}")

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Synchronize all ranks at the start and the end of the block.

        Signals wait for `Processes.check_stop`, so that all stop at one step. A launcher also signals the
        others of a process that has died; this way it is known which of the two it was.

        Raises:
            LossError: Another process has ended; says which and why.
        """
        if self._store is None:
            yield
            return
        with self.named_loss(f"; {_WHAT_NEXT}"), uninterrupted():
            yield

    @contextmanager
    def named_loss(self, what_next: str = "") -> Iterator[None]:
        """Mark a block in which this rank waits for others.

        Args:
            what_next: What to add to the message.

        Raises:
            LossError: Another process has ended; says which and why.
        """
        try:
            yield
        except Stopped:  # a launcher signals the others of one that failed
            if self._store is not None and (what := self._why()) is not None:
                raise LossError(what + what_next) from None
            raise
        except RuntimeError as error:
            if self._store is None or not _is_of_connection(error):
                raise
            ignore_stops()  # the launcher sends one to all that are left, and why it did is known
            self._raise_loss(self._store, error, what_next)

    def say_why(self, error: BaseException) -> None:
        """Tells the others why this process ends."""
        if self._store is None:
            return
        text = error.public if isinstance(error, MlprojectError) else f"{type(error).__name__}: {error}"
        with suppress(RuntimeError):  # the launcher may be gone
            self._store.set(_key("why", self.processes.rank), text)

    def _raise_loss(self, store: "Store", error: RuntimeError, what_next: str) -> NoReturn:
        what = f"the connection to the other processes broke ({str(error).splitlines()[0]})"
        with suppress(RuntimeError):  # the launcher that keeps the store may be gone as well
            what = self._find_lost(store) or what
        raise LossError(what + what_next) from None

    def _find_lost(self, store: "Store") -> str | None:
        """Who has ended, in words; looks for a while, for the news may come after the loss."""
        until = time.monotonic() + _WHY_SECONDS
        while time.monotonic() < until:
            if (what := self._why()) is not None:
                return what
            for rank in self._others:
                pid, _, host = store.get(_key("process", rank)).decode().partition(" ")
                if host == socket.gethostname() and _is_dead(int(pid)):
                    return f"{self._who(store, rank)} died without a word, as if killed or out of memory"
            time.sleep(0.1)
        return None

    def _why(self) -> str | None:
        """Return the last message of another rank that ended, None if there is none."""
        store = self._store
        with suppress(RuntimeError):  # the launcher that keeps the store may be gone
            for rank in self._others:
                if store is not None and store.check([_key("why", rank)]):
                    return f"{self._who(store, rank)} ended: {store.get(_key('why', rank)).decode()}"
        return None

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self.processes.count) if rank != self.processes.rank]

    def _who(self, store: "Store", rank: int) -> str:
        pid, _, host = store.get(_key("process", rank)).decode().partition(" ")
        return f"process {rank} of {self.processes.count} (pid {pid} on {host})"


@contextmanager
def together() -> Iterator[Together]:
    """Join the process group that ``torchrun`` started; without it, return a group of one.

    All but the first are silent from here on, but for errors.

    Raises:
        LossError: Another process has ended; says which and why.
    """
    processes = _of_environment()
    if not processes.are_several:
        yield Together()
        return
    import torch.distributed as dist

    if not processes.is_first:
        fall_silent(f"process {processes.rank} of {processes.count}")
    joined = Together(processes, _connect())
    try:
        with joined.named_loss():
            yield joined
    except (LossError, Stopped):  # of these the others know, or hear by themselves
        raise
    except BaseException as error:
        joined.say_why(error)
        raise
    finally:
        dist.destroy_process_group()


def _of_environment() -> Processes:
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # schedulers set some of these names for ends of their own
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Processes(*(int(os.environ[name]) for name in names))


def _connect() -> "Store":
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://", timeout=_TIMEOUT))
    # Between CPUs always Gloo, also where GPUs train: what is small and on the CPU goes that way.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    group_store = PrefixStore("group", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=count, timeout=_TIMEOUT)
    words = PrefixStore("words", store)
    words.set_timeout(timedelta(seconds=_WHY_SECONDS))
    return words


def _key(what: str, rank: int) -> str:
    return f"{what}/{rank}"


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether an exchange with others failed; Gloo's errors have no class of their own."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
