"""Training in several processes started by ``torchrun``: ranks, collectives, failures of other ranks."""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil

from ..errors import ConfigError, MlprojectError, TrainingError
from .cli import silence_rank
from .runtime import Stopped, answer_stop, ignore_stops, pending_stop, uninterrupted

if TYPE_CHECKING:
    from torch import Tensor
    from torch._C._distributed_c10d import Store

# Needed only if a machine vanishes, as the end of a process is noticed at once. It must be long, because
# at the first start one rank of each machine decodes all images.
_TIMEOUT = timedelta(hours=1)
_WHAT_NEXT = "the last checkpoint is complete: continue with --resume"
_FAILURE_SECONDS = 3.0  # for the failed rank to report why, or for the system to report that it has ended


class RankError(TrainingError):
    """Another rank of this training has ended."""


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks of one training, as one of them sees it; with a single rank, every collective is a no-op.

    Attributes:
        rank: Number of this rank, from 0.
        world_size: Number of ranks.
        local_rank: Number of this rank on this machine.
        local_world_size: Number of ranks on this machine.
        messages: Store for messages between ranks, kept by the launcher; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    messages: "Store | None" = field(default=None, compare=False)

    @property
    def is_main(self) -> bool:
        """Return whether this rank records the run: rank 0."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Return whether there are other ranks."""
        return self.world_size > 1

    def shard(self, length: int) -> range:
        """Return this rank's positions out of ``length``; sizes differ by at most one."""
        return _shard(length, self.rank, self.world_size)

    def all_reduce(self, values: "Tensor") -> "Tensor":
        """Sum a tensor over all ranks, in place; every rank gets the same bits."""
        if self.is_distributed:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def all_gather(self, rows: "Tensor", length: int) -> "Tensor":
        """Return the rows of all shards of ``length`` rows, in order.

        Args:
            rows: Those of this rank's `shard`, ``(N, ...)``.
            length: Number of rows of all ranks.
        """
        if not self.is_distributed:
            return rows
        import torch
        import torch.distributed as dist

        sizes = [len(_shard(length, rank, self.world_size)) for rank in range(self.world_size)]
        # All ranks send as many rows as the largest shard has; the padding is cut off again.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def broadcast_tensors(self, tensors: "Iterable[Tensor]") -> None:
        """Overwrite tensors with those of rank 0."""
        if self.is_distributed:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def broadcast_object(self, value: Any = None) -> Any:  # noqa: ANN401
        """Return the ``value`` of rank 0 on all ranks: plain values and CPU tensors."""
        if not self.is_distributed:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, 0)
        return value if self.is_main else values[0]

    def check_same(self, facts: dict[str, Any]) -> None:
        """Check that all ranks, perhaps on different machines, have the same data and settings.

        Args:
            facts: Values of this rank by their names in the message.

        Raises:
            ConfigError: A value differs from that of rank 0 on any rank; raised on all ranks.
        """
        if not self.is_distributed:
            return
        import torch.distributed as dist

        first = self.broadcast_object(facts)
        differing = [
            f"{name} is {facts[name]}, and {first[name]}" for name in facts if facts[name] != first[name]
        ]
        where = f"process {self.rank} of {self.world_size} on {socket.gethostname()}"
        text = f"{where}: {'; '.join(differing)} in the first process" if differing else ""
        texts: list[str] = [""] * self.world_size
        dist.all_gather_object(texts, text)
        if any(texts):
            raise ConfigError("; ".join(filter(None, texts)) + ": all must see the same data and settings")

    def check_stop(self) -> None:
        """Stop all ranks at the same step.

        Raises:
            Stopped: A rank has received a stop signal.
        """
        if self.is_distributed:
            import torch
            import torch.distributed as dist

            signal = torch.tensor([pending_stop()])
            dist.all_reduce(signal, dist.ReduceOp.MAX)
            if signal:
                raise answer_stop(int(signal))

    @contextmanager
    def synchronized(self) -> Iterator[None]:
        """Delay stop signals to `check_stop` within the block, so that all ranks stop at the same step.

        If a rank fails, the launcher sends the same signals to the others. The delay gives them the time to
        read the message of the failed rank.

        Raises:
            RankError: Another rank has ended; the message names it and the reason.
        """
        if self.messages is None:
            yield
            return
        with self.report_rank_failure(f"; {_WHAT_NEXT}"), uninterrupted():
            yield

    @contextmanager
    def report_rank_failure(self, what_next: str = "") -> Iterator[None]:
        """Turn errors that the end of another rank causes within the block into a message about that rank.

        Args:
            what_next: Text to add to the message.

        Raises:
            RankError: Another rank has ended; the message names it and the reason.
        """
        try:
            yield
        except Stopped:  # perhaps from the launcher, because another rank failed
            if (failure := self._read_failure()) is not None:
                raise RankError(failure + what_next) from None
            raise
        except RuntimeError as error:
            if self.messages is None or not _is_connection_error(error):
                raise
            ignore_stops()  # the launcher is about to signal the remaining ranks
            failure = f"the connection to the other processes broke ({str(error).splitlines()[0]})"
            with suppress(RuntimeError):  # the launcher, which keeps the messages, may have ended as well
                failure = self._find_failed_rank() or failure
            raise RankError(failure + what_next) from None

    def send_failure(self, error: BaseException) -> None:
        """Leave a message for the other ranks about the error that ends this one."""
        if self.messages is None:
            return
        text = error.public if isinstance(error, MlprojectError) else f"{type(error).__name__}: {error}"
        with suppress(RuntimeError):  # the launcher may have ended
            self.messages.set(f"why/{self.rank}", text)

    def _find_failed_rank(self) -> str | None:
        """Return which rank has ended and why; wait for its message, which may arrive late."""
        until = time.monotonic() + _FAILURE_SECONDS
        while time.monotonic() < until:
            if (failure := self._read_failure()) is not None:
                return failure
            for rank in self._others():
                pid, host = self._process(rank)
                if host == socket.gethostname() and _is_dead(pid):
                    return f"{self._shown(rank)} exited without an error message (killed, or out of memory?)"
            time.sleep(0.1)
        return None

    def _read_failure(self) -> str | None:
        """Return the last message of another rank that ended, None if there is none."""
        store = self.messages
        with suppress(RuntimeError):  # the launcher, which keeps the messages, may have ended
            for rank in self._others():
                key = f"why/{rank}"
                if store is not None and store.check([key]):
                    return f"{self._shown(rank)} ended: {store.get(key).decode()}"
        return None

    def _others(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank != self.rank]

    def _process(self, rank: int) -> tuple[int, str]:
        """Return process id and host of a rank."""
        assert self.messages is not None
        pid, _, host = self.messages.get(f"process/{rank}").decode().partition(" ")
        return int(pid), host

    def _shown(self, rank: int) -> str:
        pid, host = self._process(rank)
        return f"process {rank} of {self.world_size} (pid {pid} on {host})"


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the process group that ``torchrun`` started; without it, yield a group of one.

    All ranks but the main one are silenced, except for errors.

    Raises:
        RankError: Another rank has ended; the message names it and the reason.
    """
    ranks = _ranks_of_environment()
    if ranks["world_size"] == 1:
        yield SINGLE_PROCESS
        return
    import torch.distributed as dist

    if ranks["rank"] > 0:
        silence_rank(f"process {ranks['rank']} of {ranks['world_size']}")
    group = ProcessGroup(**ranks, messages=connect(ranks["rank"]))
    try:
        with group.report_rank_failure():
            yield group
    except (RankError, Stopped):  # not an error of this rank
        raise
    except BaseException as error:
        group.send_failure(error)
        raise
    finally:
        dist.destroy_process_group()


def _ranks_of_environment() -> dict[str, int]:
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # schedulers use some of these names for other purposes
        return {"rank": 0, "world_size": 1}
    names = ("rank", "world_size", "local_rank", "local_world_size")
    return {name: int(os.environ[name.upper()]) for name in names}


def connect(own_rank: int) -> "Store":
    """Initialize torch's default process group, and return the store for messages."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    # Gloo for tensors on the CPU, also if GPUs train.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    group_store = PrefixStore("group", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
    messages = PrefixStore("messages", store)
    messages.set_timeout(timedelta(seconds=_FAILURE_SECONDS))
    messages.set(f"process/{own_rank}", f"{os.getpid()} {socket.gethostname()}")
    return messages


def _shard(length: int, rank: int, world_size: int) -> range:
    start, end = (-(-length * number // world_size) for number in (rank, rank + 1))
    return range(start, end)


def _is_connection_error(error: RuntimeError) -> bool:
    """Return whether a collective failed; Gloo's errors have no class of their own."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
