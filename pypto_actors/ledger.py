"""The coordinator's books of device memory: one arena for each device, and the scratch of dispatches. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pypto_actors.arena import Arena
from pypto_actors.errors import DeviceOutOfMemoryError
from pypto_actors.lifecycle import Failure
from pypto_actors.plan import Plan, Scratch
from pypto_actors.values import DeviceTensor


def out_of_memory(device: int, asked: int, arena: Arena, what: str) -> Failure:
    return Failure(
        DeviceOutOfMemoryError,
        f"device {device} has {arena.free} of {arena.capacity} bytes free, {what} needs {asked}; "
        "free tensors first, or give the device more by DistributedConfig(memory_bytes=…)",
        {"asked": asked, "free": arena.free, "capacity": arena.capacity},
    )


def host_out_of_memory(device: int, asked: int, arena: Arena, why: BaseException) -> Failure:
    """The books have room, but the machine that simulates the device has not. `asked`: 0, where what is there already was to be copied."""
    what = f"{asked} bytes" if asked else "what it needs"
    return Failure(
        DeviceOutOfMemoryError,
        f"device {device} could not get {what} of the memory of its host: {why}; free tensors first, or use fewer or smaller ones",
        {"asked": asked, "free": arena.free, "capacity": arena.capacity},
        why,
    )


class Ledger:
    """Who holds how many bytes on which device. Scratch is numbered downwards from -1, tensors upwards from 1."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.arenas = [Arena(capacity) for capacity in capacities]
        self._scratch_held: dict[int, int] = {}  # device -> dispatches that hold scratch there
        self._last_scratch = 0
        self._windows: dict[tuple[object, str, int, int], int] = {}  # persistent: (program, name, device, bytes) -> allocation

    def reserve(self, tensors: Sequence[DeviceTensor]) -> Failure | None:
        """Reserve all of them, or nothing."""
        needs: dict[int, int] = {}
        for tensor in tensors:
            needs[tensor.device] = needs.get(tensor.device, 0) + tensor.nbytes
        for device, nbytes in needs.items():
            if nbytes > self.arenas[device].free:
                return out_of_memory(device, nbytes, self.arenas[device], "the tensor")
        for tensor in tensors:
            self.arenas[tensor.device].reserve(tensor.allocation, tensor.nbytes)
        return None

    def release(self, tensors: Sequence[DeviceTensor]) -> None:
        """Give back; what was lost with its device is gone already."""
        for tensor in tensors:
            if tensor.allocation in self.arenas[tensor.device]:
                self.arenas[tensor.device].release(tensor.allocation)

    def windows(self, plan: Plan, program: object) -> list[int]:
        """The allocations of the plan's persistent windows, numbered at first use."""
        return [self._window(scratch, program) for scratch in plan.scratch if scratch.window]

    def _window(self, scratch: Scratch, program: object) -> int:
        key = (program, scratch.window, scratch.device, scratch.nbytes)
        number = self._windows.get(key)
        if number is None:
            self._last_scratch -= 1
            number = self._windows[key] = self._last_scratch
        return number

    def _needs(self, plan: Plan, program: object) -> Mapping[int, int]:
        """Bytes that a dispatch needs on each device; persistent windows that are there already need none."""
        if not plan.windows:
            return plan.scratch_bytes
        needs = dict.fromkeys(plan.scratch_bytes, 0)
        for scratch in plan.scratch:
            if not (scratch.window and self._window(scratch, program) in self.arenas[scratch.device]):
                needs[scratch.device] += scratch.nbytes
        return needs

    def scratch_fits(self, plan: Plan, program: object) -> bool:
        return all(nbytes <= self.arenas[device].free for device, nbytes in self._needs(plan, program).items())

    def scratch_never_fits(self, plan: Plan, program: object) -> Failure | None:
        """Why waiting is in vain: it does not fit on a device although no other scratch is held there."""
        for device, nbytes in self._needs(plan, program).items():
            arena = self.arenas[device]
            if nbytes > arena.free and not self._scratch_held.get(device):
                return out_of_memory(device, nbytes, arena, f"the scratch of program {plan.program!r}")
        return None

    def take_scratch(self, plan: Plan, program: object) -> tuple[tuple[int, ...], dict[int, tuple[tuple[int, int], ...]]]:
        """All scratch of a dispatch in one step; it must fit. Gives the allocations, and what each device has to bring into being."""
        taken = []
        fresh: dict[int, tuple[tuple[int, int], ...]] = {}
        for scratch in plan.scratch:
            if scratch.window:
                number = self._window(scratch, program)
            else:
                self._last_scratch -= 1
                number = self._last_scratch
            taken.append(number)
            arena = self.arenas[scratch.device]
            if number not in arena:
                arena.reserve(number, scratch.nbytes)
                fresh[scratch.device] = (*fresh.get(scratch.device, ()), (number, scratch.nbytes))
        for device in plan.scratch_bytes:
            self._scratch_held[device] = self._scratch_held.get(device, 0) + 1
        return tuple(taken), fresh

    def give_scratch(self, plan: Plan, taken: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """The end of a dispatch's scratch; gives what each device has to release. Persistent windows stay."""
        given: dict[int, tuple[int, ...]] = {}
        for scratch, allocation in zip(plan.scratch, taken, strict=True):
            if not scratch.window:
                self.arenas[scratch.device].release(allocation)
                given[scratch.device] = (*given.get(scratch.device, ()), allocation)
        for device in plan.scratch_bytes:
            self._scratch_held[device] -= 1
        return given

    def lose(self, device: int) -> list[int]:
        """A device has died: its tensors and persistent windows are gone; the scratch of dispatches ends with them."""
        arena = self.arenas[device]
        windows = {number for key, number in self._windows.items() if key[2] == device}
        lost = [number for number in arena.sizes or () if number > 0 or number in windows]
        for number in lost:
            arena.release(number)
        return lost

    def clear(self) -> None:
        """Everything is given back: the worker has ended."""
        for arena in self.arenas:
            arena.sizes = None
            arena.used = 0
        self._scratch_held.clear()
