"""Which device tensors of a worker are alive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from pypto_actors.errors import ArgumentTypeError, StaleTensorError
from pypto_actors.values import DeviceTensor, StackedDeviceTensor

_workers = itertools.count(1)


def tensors_of(tensor: Any, what: str) -> tuple[DeviceTensor, ...]:
    """The device tensors that make up `tensor`, of either kind."""
    if isinstance(tensor, DeviceTensor):
        return (tensor,)
    if isinstance(tensor, StackedDeviceTensor):
        return tensor.shards
    raise ArgumentTypeError(f"{what} must be a DeviceTensor or a StackedDeviceTensor, got {type(tensor).__name__}")


class Tensors:
    """Which device tensors of a worker are alive. `epoch` moves on whenever one ends, or a program does."""

    __slots__ = ("alive", "epoch", "next")

    def __init__(self, first: int) -> None:
        self.next = first
        self.alive: dict[int, DeviceTensor] = {}
        self.epoch = 0

    @classmethod
    def of_new_worker(cls) -> Tensors:
        """Numbers that no other worker of this process gives out."""
        return cls(next(_workers) << 32)

    def number(self) -> int:
        self.next += 1
        return self.next

    def lose(self, allocations: Sequence[int]) -> None:
        """They are gone with their device."""
        for allocation in allocations:
            self.alive.pop(allocation, None)
        self.epoch += 1

    def check_any(self, value: Any, where: str) -> None:
        """`check` of what may be a tensor of either kind."""
        if isinstance(value, (DeviceTensor, StackedDeviceTensor)):
            for tensor in tensors_of(value, where):
                self.check(tensor, where)

    def check(self, tensor: DeviceTensor, where: str) -> None:
        if tensor.allocation not in self.alive:
            mine = tensor.allocation >> 32 == self.next >> 32
            why = "was freed, or lost with its device" if mine else "belongs to another worker"
            raise StaleTensorError(f"{where} is {tensor!r}, which {why}")
