"""The coordinator's books of device memory: one arena for each device, and the scratch of dispatches. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pypto_actors.arena import Arena
from pypto_actors.errors import DeviceOutOfMemoryError
from pypto_actors.lifecycle import Failure
from pypto_actors.plan import Plan
from pypto_actors.values import DeviceTensor


def out_of_memory(device: int, asked: int, arena: Arena, what: str) -> Failure:
    return Failure(
        DeviceOutOfMemoryError,
        f"device {device} has {arena.free} of {arena.capacity} bytes free, {what} needs {asked}; "
        "free tensors first, or give the device more by DistributedConfig(memory_bytes=…)",
        {"asked": asked, "free": arena.free, "capacity": arena.capacity},
    )


class Ledger:
    """Who holds how many bytes on which device. Scratch is numbered downwards from -1, tensors upwards from 1."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.arenas = [Arena(capacity) for capacity in capacities]
        self._scratch_held: dict[int, int] = {}  # device -> dispatches that hold scratch there
        self._last_scratch = 0

    def reserve(self, tensors: Sequence[DeviceTensor]) -> Failure | None:
        """Reserve all of them, or nothing."""
        for index, tensor in enumerate(tensors):
            arena = self.arenas[tensor.device]
            if not arena.reserve(tensor.allocation, tensor.nbytes):
                failure = out_of_memory(tensor.device, tensor.nbytes, arena, "the tensor")
                for done in tensors[:index]:
                    self.arenas[done.device].release(done.allocation)
                return failure
        return None

    def release(self, tensors: Sequence[DeviceTensor]) -> None:
        for tensor in tensors:
            self.arenas[tensor.device].release(tensor.allocation)

    def scratch_fits(self, plan: Plan) -> bool:
        return all(nbytes <= self.arenas[device].free for device, nbytes in plan.scratch_bytes.items())

    def scratch_never_fits(self, plan: Plan) -> Failure | None:
        """Why waiting is in vain: it does not fit on a device although no other scratch is held there."""
        for device, nbytes in plan.scratch_bytes.items():
            arena = self.arenas[device]
            if nbytes > arena.free and not self._scratch_held.get(device):
                return out_of_memory(device, nbytes, arena, f"the scratch of program {plan.program!r}")
        return None

    def take_scratch(self, plan: Plan) -> tuple[int, ...]:
        """All scratch of a dispatch in one step; it must fit."""
        taken = []
        for scratch in plan.scratch:
            self._last_scratch -= 1
            self.arenas[scratch.device].reserve(self._last_scratch, scratch.nbytes)
            taken.append(self._last_scratch)
        for device in plan.scratch_bytes:
            self._scratch_held[device] = self._scratch_held.get(device, 0) + 1
        return tuple(taken)

    def give_scratch(self, plan: Plan, taken: Sequence[int]) -> None:
        for scratch, allocation in zip(plan.scratch, taken, strict=True):
            self.arenas[scratch.device].release(allocation)
        for device in plan.scratch_bytes:
            self._scratch_held[device] -= 1

    def clear(self) -> None:
        """Everything is given back: the worker has ended."""
        for arena in self.arenas:
            arena.sizes = None
            arena.used = 0
        self._scratch_held.clear()
