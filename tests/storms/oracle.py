"""What the bytes must be: everything that ran, one after another in the order of acceptance, read off the trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pypto_actors.events import COORDINATOR, Changed, Event, Received
from pypto_actors.lifecycle import RunState
from pypto_actors.messages import Allocate, Copy, Failed, Free, Submit
from pypto_actors.values import DeviceTensor
from tests.storms.programs import EFFECTS, I64, Cells, Ints

ENDS = (RunState.DONE, RunState.FAILED, RunState.CANCELLED, RunState.EXPIRED)
Operation = Submit | Allocate | Copy | Free


def address_of(array: Ints) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class Oracle:
    """`hosts` are the host arrays of the scenario with the values that they began with."""

    def __init__(self, events: Sequence[Event], hosts: Sequence[tuple[Ints, Ints]]) -> None:
        self.operations: dict[int, Operation] = {}
        self.outcomes: dict[int, RunState] = {}
        self.raised: set[int] = set()
        self.returned: dict[int, tuple[int | None, ...]] = {}
        self.tensors: dict[int, Cells] = {}
        self.hosts: list[tuple[int, int, Ints, Cells]] = []
        for array, first in hosts:
            self._add_host(array, first)
        self._read_off(events)
        for run, message in self.operations.items():
            self._apply(run, message)

    def _read_off(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Received) and event.actor == COORDINATOR:
                message = event.message
                if isinstance(message, (Submit, Allocate, Copy, Free)):
                    assert message.run > max(self.operations, default=0), "numbers are not in the order of acceptance"
                    self.operations[message.run] = message
                elif isinstance(message, Failed) and message.part >= 0:
                    self.raised.add(message.run)
            elif isinstance(event, Changed) and event.after in ENDS and event.run in self.operations:
                assert event.run not in self.outcomes, f"{event.run} ended twice"
                self.outcomes[event.run] = event.after
        silent = [message for run, message in self.operations.items() if run not in self.outcomes]
        assert not silent, f"accepted, and no outcome: {silent}"

    def _add_host(self, array: Ints, first: Ints) -> Cells:
        cells = Cells.of(first)
        self.hosts.append((address_of(array), address_of(array) + array.nbytes, array, cells))
        return cells

    def cells(self, value: Any, source: bool = False) -> Any:
        if isinstance(value, DeviceTensor):
            return self.tensors[value.allocation].cut(value.offset // 8, (value.offset + value.nbytes) // 8)
        if not isinstance(value, np.ndarray):
            return value
        address = address_of(value)
        for start, stop, _, cells in self.hosts:
            if start <= address < stop:
                return cells.cut((address - start) // 8, (address - start + value.nbytes) // 8)
        # an `init` that nobody writes; else of return style, or the target of a read
        return self._add_host(value, value if source else np.zeros(value.shape, I64))

    def _apply(self, run: int, message: Operation) -> None:
        outcome = self.outcomes[run]
        if isinstance(message, Allocate):
            for tensor in message.tensors:
                self.tensors[tensor.allocation] = Cells.of(np.zeros(tensor.nbytes // 8, I64))
        if outcome is not RunState.DONE and run not in self.raised:
            if isinstance(message, Submit):
                [self.cells(arg) for arg in message.args]  # returned arrays keep their zeros
            return
        if isinstance(message, Submit):
            args = [self.cells(arg) for arg in message.args]
            if run in self.raised:
                assert outcome is RunState.FAILED
                for arg in args:
                    if isinstance(arg, Cells):  # the failing programs write all that they get
                        arg.lose()
            else:
                self.returned[run] = EFFECTS[message.program](*args)
        elif not isinstance(message, Free):
            for piece in message.pieces:
                source = self.cells(piece.source, source=True)
                self.cells(piece.target).become(source.values, source.undefined)

    def check_hosts(self) -> None:
        """Also what `read` returned, at its place in the order."""
        for _, _, array, cells in self.hosts:
            assert np.array_equal(array[~cells.undefined], cells.values[~cells.undefined]), (array, cells.values, cells.undefined)
