"""What the process of a device knows already: functions, parts of plans, calls with their values, slabs of memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pypto_actors.backends.known_calls import MOST, Known, KnownCalls
from pypto_actors.backends.memory import sliced_tensor
from pypto_actors.backends.process_link import Link
from pypto_actors.backends.process_staging import Stage, dtype_key
from pypto_actors.backends.shared_memory import SharedInterconnect
from pypto_actors.backends.shipping import ship
from pypto_actors.backends.wire import COPY, SYNC, Drop, Forget, Know, Learn, Map, Prepare, Value
from pypto_actors.messages import Dispatch
from pypto_actors.plan import Part, Plan, Slot, Source, Sync
from pypto_actors.values import DeviceTensor

SCALARS = (bool, float, str)


class Ledger:
    """Of one process. Its calls append to `out` what must be sent before."""

    def __init__(self, interconnect: SharedInterconnect) -> None:
        self._interconnect = interconnect
        self.calls = KnownCalls()
        self._functions: dict[int, tuple[Callable[..., Any], int]] = {}
        self._parts: dict[int, tuple[Part, int]] = {}
        self._slabs: set[int] = set()
        self._writes: dict[int, tuple[Plan, tuple[int, ...]]] = {}  # of each plan, the arguments that it writes
        self._last = 0

    def _number(self) -> int:
        self._last += 1
        return self._last

    # ------------------------------------------------------------------------------------------ parts

    def part(self, plan: Plan, part: Part, out: list[Any]) -> int:
        """The number of a part, made known.

        Raises:
            TypeError: a function of it cannot cross.
        """
        known = self._parts.get(id(part))
        if known is not None:
            return known[1]
        if max(len(self._parts), len(self._functions)) >= MOST:
            self._parts.clear()
            self._functions.clear()
            self.calls.clear()
            out.append(Forget())
        steps: list[tuple[int, int, tuple[int, ...]]] = []
        for step in part.steps:
            if isinstance(step.function, Sync):
                steps.append((SYNC, step.function.number, ()))
            else:
                steps.append((COPY if step.function is None else self._function(step.function, out), 0, step.slots))
        number = self._number()
        out.append(Prepare(number, part.index, steps, [slot.writable for slot in part.slots], part.events))
        self._parts[id(part)] = (part, number)
        return number

    def _function(self, function: Callable[..., Any], out: list[Any]) -> int:
        known = self._functions.get(id(function))
        if known is None:
            blob = ship(function)
            known = self._functions[id(function)] = (function, self._number())
            out.append(Learn(known[1], blob))
        return known[1]

    def written(self, message: Dispatch) -> list[int]:
        """The allocations among the arguments that any part of a dispatch writes."""
        plan = message.plan
        known = self._writes.get(id(plan))
        if known is None:
            if len(self._writes) >= MOST:
                self._writes.clear()
            slots = [slot for part in plan.parts for slot in part.slots if slot.writable and slot.source is Source.ARGUMENT]
            known = self._writes[id(plan)] = plan, tuple(sorted({slot.index for slot in slots}))
        args = message.args
        return [arg.allocation for index in known[1] if type(arg := args[index]) is DeviceTensor]

    # ------------------------------------------------------------------------------------------ values

    def values(
        self, message: Dispatch, part: Part, slots: Iterable[tuple[int, Slot]], stage: Stage | None, link: Link, out: list[Any]
    ) -> list[Value]:
        """The values of some of a part's slots."""
        values = []
        for index, slot in slots:
            staged = stage.values.get((part.index, index)) if stage is not None else None
            value = self._value(slot, message) if staged is None else staged
            if type(value) is tuple and value[0] and value[0] not in self._slabs:
                self._map(value[0], link, out)
            values.append(value)
        return values

    def _value(self, slot: Slot, message: Dispatch) -> Value:
        if slot.source is Source.SCRATCH:
            form = message.plan.scratch[slot.index]
            allocation = message.scratch[slot.index]
            self._interconnect.commit(allocation, form.nbytes, form.device)
            return self._tensor(sliced_tensor(DeviceTensor.of(form.device, form.shape, form.dtype, allocation), slot.path))
        value = slot.value if slot.source is Source.CONSTANT else message.args[slot.index]
        if slot.source is Source.ARGUMENT and slot.value is not None:
            value = slot.value(value)
        if type(value) is DeviceTensor:
            return self._tensor(sliced_tensor(value, slot.path) if slot.path else value)
        if type(value) in SCALARS or value is None or (type(value) is int and -(1 << 63) <= value < 1 << 63):
            return value
        return pickle.dumps(value)

    def _tensor(self, tensor: DeviceTensor) -> Value:
        slab, offset = self._interconnect.place(tensor)
        return (slab, offset, tensor.shape, None, dtype_key(tensor.dtype))

    def _map(self, slab: int, link: Link, out: list[Any]) -> None:
        known = self._interconnect.slabs[slab]
        link.send_file(slab, known.fd)
        out.append(Map(slab, known.size))
        self._slabs.add(slab)

    def unmap(self, slabs: Sequence[int]) -> list[int]:
        """Slabs that have gone; gives those that the process has mapped."""
        mine = [slab for slab in slabs if slab in self._slabs]
        self._slabs.difference_update(mine)
        return mine

    # ------------------------------------------------------------------------------------------ calls

    def keeps(self, message: Dispatch, part: Part) -> bool:
        """Is it worth to be known? Calls on device tensors alone have the same tuple of arguments each time."""
        return message.plan.sole >= 0 and part.direct is not None and all(type(arg) is DeviceTensor for arg in message.args)

    def keep(self, message: Dispatch, part: int, values: list[Value], out: list[Any]) -> int:
        """The number of a call, made known."""
        known = Known(message.args, message.plan, self._number())
        self._keep(known, [arg.allocation for arg in message.args], out)
        out.append(Know(known.number, part, values))
        return known.number

    def bound(self, message: Dispatch, part: Part, number: int, link: Link, out: list[Any]) -> Known | None:
        """What the calls of a bound program have in common, made known; `None`: this is no such call, or some of it lives elsewhere."""
        fixed, plan = message.fixed, message.plan
        if fixed is None or plan.sole < 0 or part.direct is None:
            return None
        known = self.calls.find(fixed, plan)
        if known is not None:
            return known
        rest: list[tuple[int, Slot]] = []
        common: list[tuple[int, Slot]] = []
        for index, slot in enumerate(part.slots):
            (rest if slot.index in fixed.rest else common).append((index, slot))
        if any(message.args[slot.index].device != plan.sole for _, slot in common):
            return None
        values: list[Value] = [None] * len(part.slots)
        for (index, _), value in zip(common, self.values(message, part, common, None, link, out), strict=True):
            values[index] = value
        known = Known(fixed, plan, self._number(), tuple(rest))
        self._keep(known, fixed.spaces, out)
        out.append(Know(known.number, number, values, [index for index, _ in rest]))
        return known

    def _keep(self, known: Known, allocations: Iterable[int], out: list[Any]) -> None:
        gone = self.calls.keep(known, allocations)
        if gone:
            out.append(Drop(gone))
