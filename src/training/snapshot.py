"""A copy of a training's state that stays as it is while training goes on."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..utils.threads import at_most_threads

Place = tuple[object, ...]


class Snapshot:
    """Copies states into main memory that is kept from one to the next, so that a copy takes milliseconds."""

    def __init__(self) -> None:
        self._kept: dict[Place, Tensor] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a copy of nested mappings and lists of tensors and plain values.

        It shares its memory with the copy before, which must not be used any more. Tensors keep their
        strides and land on the CPU.
        """
        # Many short copies: with several threads each would wait for whatever else uses a core.
        with at_most_threads(1):
            copied: dict[str, Any] = self._copy(state, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies from a GPU have only been asked for until here
        return copied

    def _copy(self, value: Any, place: Place) -> Any:  # noqa: ANN401 -- whatever a state may hold
        if isinstance(value, Tensor):
            return self._memory(value, place).copy_(value, non_blocking=True)
        if isinstance(value, dict | list):
            result = copy.copy(value)  # of the same type, with its attributes (the versions of a state dict)
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                result[key] = self._copy(item, (*place, key))
            return result
        return value

    def _memory(self, like: Tensor, place: Place) -> Tensor:
        kept = self._kept.get(place)
        if kept is None or kept.shape != like.shape or kept.dtype != like.dtype:
            # Pinned, a copy from a GPU runs at the full speed of the bus.
            kept = torch.empty_like(like, device="cpu", pin_memory=like.is_cuda)
            self._kept[place] = kept
        return kept
