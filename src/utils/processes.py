"""One training in several processes: rank, world size, and collective operations.

They are started by ``torchrun``; its environment says who is who. The first (rank 0) keeps the record
of the run, the others compute along and write nothing.
"""

import io
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .runtime import answer_stop, pending_stop

if TYPE_CHECKING:
    from torch import Tensor

_TEXT_BYTES = 2048


@dataclass(frozen=True)
class Processes:
    """The processes that train together, as one of them sees it; alone, every exchange does nothing.

    Attributes:
        rank: Which one this is, from 0.
        count: How many there are.
        local_rank: Which one on this machine.
        local_count: How many on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one keeps the record."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def share(self, length: int) -> range:
        """Its places among ``length``; shares differ by one at most; the first is a largest."""
        start, end = (-(-length * rank // self.count) for rank in (self.rank, self.rank + 1))
        return range(start, end)

    def sum(self, values: "Tensor") -> "Tensor":
        """Sum a tensor over all ranks, in place; every rank gets the same bits."""
        if self.are_several:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def joined(self, rows: "Tensor", length: int) -> "Tensor":
        """Return the rows of all shards of ``length`` rows, in order.

        Args:
            rows: Those of this process's `share`, ``(N, ...)``.
            length: How many there are in all.
        """
        if not self.are_several:
            return rows
        import torch
        import torch.distributed as dist

        sizes = [len(Processes(rank, self.count).share(length)) for rank in range(self.count)]
        # All send as much as the largest share; what was added to a smaller one is cut off again.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def copy_from_first(self, tensors: "Iterable[Tensor]") -> None:
        """Overwrite tensors with those of rank 0."""
        if self.are_several:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def told(self, value: Any = None) -> Any:  # noqa: ANN401
        """Return the ``value`` of rank 0: plain values and CPU tensors; that of other ranks is ignored."""
        if not self.are_several:
            return value
        import torch
        import torch.distributed as dist

        stream = io.BytesIO()
        if self.is_first:
            torch.save(value, stream)
        size = torch.tensor([stream.tell()])
        dist.broadcast(size, 0)
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.is_first:
            content.copy_(torch.frombuffer(stream.getbuffer(), dtype=torch.uint8))
        dist.broadcast(content, 0)
        if self.is_first:
            return value
        return torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True, map_location="cpu")

    def check_same(self, facts: dict[str, Any]) -> None:
        """Refuses to train where processes have not found the same, on different machines say.

        Args:
            facts: What each process has found, by a name that people know.

        Raises:
            ConfigError: Some process has found something else than the first, on all of them.
        """
        if not self.are_several:
            return
        first = self.told(facts)
        differing = [
            f"{name} is {facts[name]}, and {first[name]}" for name in facts if facts[name] != first[name]
        ]
        where = f"process {self.rank} of {self.count} on {socket.gethostname()}"
        text = f"{where}: {'; '.join(differing)} in the first process" if differing else ""
        if complaints := [found for found in self._texts(text) if found]:
            raise ConfigError("; ".join(complaints) + ": all must see the same data and settings")

    def _texts(self, text: str) -> list[str]:
        """Return a short text of every rank."""
        import torch

        encoded = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
        rows = self.joined(torch.frombuffer(bytearray(encoded), dtype=torch.uint8)[None], self.count)
        return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows]

    def check_stop(self) -> None:
        """Stop all ranks at the same step if any of them has received a signal.

        Raises:
            Stopped: One did.
        """
        if self.are_several:
            import torch
            import torch.distributed as dist

            asked = torch.tensor([pending_stop()])
            dist.all_reduce(asked, dist.ReduceOp.MAX)
            if int(asked):
                raise answer_stop(int(asked))


ALONE = Processes()
