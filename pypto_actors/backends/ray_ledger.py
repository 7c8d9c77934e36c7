"""What the actor of a device knows already: functions, segments of plans, calls with their values, memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from pypto_actors.backends.known_calls import MOST, Known, KnownCalls
from pypto_actors.backends.memory import sliced_tensor
from pypto_actors.backends.process_ledger import SCALARS
from pypto_actors.backends.process_staging import dtype_key
from pypto_actors.backends.ray_segments import Segment, Use, segments_of
from pypto_actors.backends.ray_wire import COPY, EMPTY, TENSOR, Drop, Forget, Free, Know, Make, Prepare, Value
from pypto_actors.backends.shipping import ship
from pypto_actors.backends.wire import Learn
from pypto_actors.errors import InternalError
from pypto_actors.messages import Dispatch
from pypto_actors.plan import Part, Plan, Slot, Source
from pypto_actors.values import DeviceTensor


class Ledger:
    """Of one device. `out` is what must be sent before the next call, in order."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.out: list[Any] = []
        self.calls = KnownCalls()
        self._functions: dict[int, tuple[Callable[..., Any], int]] = {}
        self._parts: dict[int, tuple[Part, tuple[Segment, ...]]] = {}
        self._segments: dict[int, int] = {}
        self._memory: dict[int, int] = {}  # of each allocation, bytes
        self._last = 0
        self.freed_bytes = 0  # in `out`

    def _number(self) -> int:
        self._last += 1
        return self._last

    # ------------------------------------------------------------------------------------------ parts

    def segments(self, part: Part) -> tuple[Segment, ...]:
        """The segments of a part."""
        known = self._parts.get(id(part))
        if known is None:
            if max(len(self._parts), len(self._functions)) >= MOST:
                self._forget()
            known = self._parts[id(part)] = (part, segments_of(part))
        return known[1]

    def _forget(self) -> None:
        for kept in (self._parts, self._functions, self._segments, self.calls):
            kept.clear()
        self.out.append(Forget())

    def segment(self, segment: Segment) -> int:
        """The number of a segment, made known. It lives as long as its part is known.

        Raises:
            TypeError: a function of it cannot cross.
        """
        number = self._segments.get(id(segment))
        if number is None:
            steps = [(COPY if function is None else self._function(function), positions) for function, positions in segment.steps]
            number = self._segments[id(segment)] = self._number()
            self.out.append(Prepare(number, segment.part.index, segment.first, steps, [use.writable for use in segment.uses]))
        return number

    def _function(self, function: Callable[..., Any]) -> int:
        known = self._functions.get(id(function))
        if known is None:
            blob = ship(function)
            known = self._functions[id(function)] = (function, self._number())
            self.out.append(Learn(known[1], blob))
        return known[1]

    # ------------------------------------------------------------------------------------------ values

    def slot(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> Any:
        """The value of a slot: a tensor, a host array as it came, or anything else."""
        if slot.source is Source.SCRATCH:
            form = plan.scratch[slot.index]
            return sliced_tensor(DeviceTensor.of(form.device, form.shape, form.dtype, scratch[slot.index]), slot.path)
        if slot.source is Source.CONSTANT:
            return slot.value
        value = args[slot.index]
        if slot.value is not None:
            return slot.value(value)
        return sliced_tensor(value, slot.path) if type(value) is DeviceTensor and slot.path else value

    def value(self, use: Use, slot: Slot, message: Dispatch) -> Value | DeviceTensor:
        """The value of a use on the wire; of device memory, its tensor. Host arrays are staged before."""
        value = self.slot(slot, message.args, message.scratch, message.plan)
        if type(value) is DeviceTensor:
            return use.of(value)
        if type(value) in SCALARS or value is None or (type(value) is int and -(1 << 63) <= value < 1 << 63):
            return value
        return pickle.dumps(value)

    def place(self, tensor: DeviceTensor) -> Value:
        """Where a tensor of this device lives."""
        if tensor.nbytes == 0:
            return [EMPTY, tensor.shape, dtype_key(tensor.dtype)]
        if tensor.allocation not in self._memory:
            raise InternalError(f"{tensor!r} reached a device after its memory was released")
        return [TENSOR, tensor.allocation, tensor.offset, tensor.shape, dtype_key(tensor.dtype)]

    # ------------------------------------------------------------------------------------------ memory

    def make(self, items: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Memory that is to be; gives what is new. Scratch may be there already: another device of its dispatch has asked for it first."""
        fresh = [item for item in items if item[0] not in self._memory]
        self._memory.update(fresh)
        return fresh

    def remade(self, allocations: Sequence[int]) -> list[Make]:
        """Memory once more, for a call beside the kernels, which may overtake the call that makes it."""
        items = [(allocation, self._memory[allocation]) for allocation in allocations if allocation in self._memory]
        return [Make(items)] if items else []

    def size(self, allocation: int) -> int:
        return self._memory[allocation]

    def take_out(self) -> list[Any]:
        """What must be sent before the next call, which sends it."""
        out, self.out = self.out, []
        self.freed_bytes = 0
        return out

    def scratch(self, allocation: int, nbytes: int) -> None:
        """Scratch of which another device, or a callback, may ask before its own message has come."""
        if allocation not in self._memory:
            self.out.append(Make(self.make([(allocation, nbytes)])))

    def release(self, allocations: Sequence[int]) -> None:
        """Memory has gone, and the calls that name it."""
        gone = self.calls.released(allocations)
        if gone:
            self.out.append(Drop(gone))
        known_here = [allocation for allocation in allocations if allocation in self._memory]
        for allocation in known_here:
            self.freed_bytes += max(1, self._memory.pop(allocation))
        if known_here:
            self.out.append(Free(known_here))

    # ------------------------------------------------------------------------------------------ calls

    def keeps(self, message: Dispatch, part: Part) -> bool:
        """Is it worth to be known? Calls on device tensors alone have the same tuple of arguments each time."""
        return message.plan.sole >= 0 and part.direct is not None and all(type(arg) is DeviceTensor for arg in message.args)

    def keep(self, message: Dispatch, segment: int, values: list[Value]) -> int:
        """The number of a call, made known."""
        known = Known(message.args, message.plan, self._number())
        gone = self.calls.keep(known, [arg.allocation for arg in message.args])
        if gone:
            self.out.append(Drop(gone))
        self.out.append(Know(known.number, segment, values))
        return known.number
