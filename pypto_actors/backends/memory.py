"""Device memory in this process: one numpy buffer an allocation, and the views that kernels see. Devices of one backend reach each
other's memory through the interconnect, as NPUs do over their links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from pypto_actors.backends.rendezvous import Rendezvous
from pypto_actors.errors import InternalError
from pypto_actors.executor import plain, read_only
from pypto_actors.plan import Part, Path, Plan, Slot, Source
from pypto_actors.values import DeviceTensor, Fixed

Array = np.ndarray[Any, Any]
MOST_VIEWS = 4096  # kept of one device; enough for a KV cache's pages
MOST_CALLS = 1024  # calls of device tensors whose values are kept
MOST_FIXED = 256  # bound programs whose views are kept


class Interconnect:
    """Which buffer each allocation has, over all devices of a backend; and where the devices meet."""

    def __init__(self) -> None:
        self.buffers: dict[int, Array] = {}
        self._ranks: dict[int, int] = {}  # of each allocation, the device where it lives
        self.gone: set[int] = set()  # devices that have died and are not there again
        self.rendezvous = Rendezvous()

    def commit(self, allocation: int, nbytes: int, rank: int) -> None:
        """Zeroed memory. Scratch may be there already: a device of its dispatch has asked for it before its own has heard of it."""
        if allocation not in self.buffers:
            self.check_there(rank)
            self.buffers[allocation] = np.zeros(nbytes, np.uint8)  # calloc: pages are committed when they are touched
            self._ranks[allocation] = rank

    def release(self, allocation: int) -> None:
        self.buffers.pop(allocation, None)
        self._ranks.pop(allocation, None)

    def check_there(self, rank: int) -> None:
        if rank in self.gone:
            raise RuntimeError(f"device {rank} has died")

    def revive(self, rank: int) -> None:
        """A device is there again, empty."""
        self.gone.discard(rank)

    def lose(self, rank: int) -> None:
        """A device has died, and its memory with it."""
        self.gone.add(rank)
        for allocation in [allocation for allocation, where in self._ranks.items() if where == rank]:
            self.release(allocation)

    def array(self, tensor: DeviceTensor) -> Array:
        try:
            buffer = self.buffers[tensor.allocation]
        except KeyError:
            raise InternalError(f"{tensor!r} reached a device after its memory was released") from None
        return buffer[tensor.offset : tensor.offset + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)


class Known(Struct, eq=False):
    """The values of the slots of a part whose arguments are fixed; `rest`: the others, as (slot, argument, is it written)."""

    part: Part
    values: list[Any]
    rest: tuple[tuple[int, int, bool], ...]


class Views:
    """The views of one device's kernels, kept for the tensors that come again and again."""

    def __init__(self, rank: int, interconnect: Interconnect) -> None:
        self._rank = rank
        self.interconnect = interconnect
        self._calls: dict[int, tuple[Sequence[Any], Part, list[Any]]] = {}  # by the identity of the arguments
        self._fixed: dict[Fixed, Known] = {}
        self._read: dict[DeviceTensor, Array] = {}
        self._write: dict[DeviceTensor, Array] = {}

    def forget(self, allocations: Sequence[int]) -> None:
        gone = set(allocations)
        self._calls.clear()
        self._fixed.clear()
        for kept in (self._read, self._write):
            for tensor in [tensor for tensor in kept if tensor.allocation in gone]:
                del kept[tensor]

    def tensor(self, tensor: DeviceTensor, writable: bool) -> Array:
        kept = self._write if writable else self._read
        view = kept.get(tensor)
        if view is None:
            view = self.interconnect.array(tensor)
            if not writable:
                view.flags.writeable = False
            if tensor.device == self._rank:  # a view of a peer's memory would keep it after its release
                if len(kept) >= MOST_VIEWS:
                    kept.clear()
                kept[tensor] = view
        return view

    def values(self, part: Part, args: Sequence[Any], scratch: Sequence[int], plan: Plan, fixed: Fixed | None = None) -> list[Any]:
        """The values of a part's slots: arrays that are read-only where they are not written, and scalars."""
        call = self._calls.get(id(args))
        if call is not None and call[0] is args and call[1] is part:  # calls of device tensors come again and again
            return call[2]
        direct = part.direct
        if fixed is not None and direct is not None:
            known = self._fixed.get(fixed)
            if known is None or known.part is not part:
                known = self._know(fixed, part, direct, args)
            values = known.values.copy()
            for slot, index, writable in known.rest:
                value = args[index]
                if isinstance(value, np.ndarray):
                    value = plain(value) if writable else read_only(value)
                values[slot] = value
            return values
        if direct is None:
            return [self.slot(slot, args, scratch, plan) for slot in part.slots]
        values = []
        own = True
        for index, writable in direct:
            value = args[index]
            if type(value) is DeviceTensor:
                view = (self._write if writable else self._read).get(value)
                if view is None:
                    own = own and value.device == self._rank
                    view = self.tensor(value, writable)
                values.append(view)
            elif not isinstance(value, np.ndarray):
                values.append(value)
            else:
                own = False
                values.append(plain(value) if writable else read_only(value))
        if own:  # views of host arrays and of a peer's memory would keep it
            if len(self._calls) >= MOST_CALLS:
                self._calls.clear()
            self._calls[id(args)] = (args, part, values)
        return values

    def _know(self, fixed: Fixed, part: Part, direct: Sequence[tuple[int, bool]], args: Sequence[Any]) -> Known:
        """Look up what is fixed, for all calls to come."""
        values: list[Any] = []
        rest = []
        for slot, (index, writable) in enumerate(direct):
            if index in fixed.rest:
                rest.append((slot, index, writable))
                values.append(None)
            else:
                values.append(self.tensor(args[index], writable))
        known = Known(part, values, tuple(rest))
        if all(args[index].device == self._rank for index, _ in direct if index not in fixed.rest):
            if len(self._fixed) >= MOST_FIXED:
                self._fixed.clear()
            self._fixed[fixed] = known
        return known

    def slot(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> Any:
        source = slot.source
        if source is Source.ARGUMENT:
            value = args[slot.index]
            if type(value) is DeviceTensor:
                if slot.path:
                    value = sliced_tensor(value, slot.path)
                return self.tensor(value, slot.writable)
            if isinstance(value, np.ndarray):
                array = sliced(plain(value), slot.path)
                return array if slot.writable else read_only(array)
            return value if slot.value is None else slot.value(value)
        if source is Source.CONSTANT:
            return slot.value
        form = plan.scratch[slot.index]
        self.interconnect.commit(scratch[slot.index], form.nbytes, form.device)
        whole = DeviceTensor.of(form.device, form.shape, form.dtype, scratch[slot.index])
        array = sliced(self.interconnect.array(whole), slot.path)
        return array if slot.writable else read_only(array)


def sliced(array: Array, path: Path) -> Array:
    for start, stop, squeeze in path:
        # a dimension taken by an index must stay an array, also when it was the last one
        array = array[start, ...] if squeeze else array[start:stop]
    return array


def sliced_tensor(tensor: DeviceTensor, path: Path) -> DeviceTensor:
    for start, stop, squeeze in path:
        tensor = tensor[start] if squeeze else tensor[start:stop]
    return tensor
