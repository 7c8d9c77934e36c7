"""The serial model: everything that took effect, one after another in the order of acceptance, by the trace alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from pypto_actors.events import Changed, Event, Received
from pypto_actors.lifecycle import RunState
from pypto_actors.messages import Allocate, Copy, Read, Submit, Transfer, Write
from pypto_actors.values import DeviceTensor
from tests.chaos.scenario import PRIME, Scenario

Array = np.ndarray[Any, Any]


class Model:
    """Values, and which of them are undefined: what a failed dispatch was writing, until it is written again."""

    def __init__(self, scenario: Scenario) -> None:
        self._real = scenario.base
        self.host = scenario.start.copy()
        self.host_undefined = np.zeros(len(self.host), bool)
        self.device: dict[int, Array] = {}
        self.device_undefined: dict[int, Array] = {}
        self._play(scenario.events)

    def _play(self, events: list[Event]) -> None:
        ends = {event.run: event.after for event in events if isinstance(event, Changed) and event.after.final}
        began = {event.run for event in events if isinstance(event, Changed) and event.after is RunState.RUNNING}
        messages: dict[int, Any] = {}
        for event in events:
            if isinstance(event, Received) and isinstance(event.message, (Submit, Copy, Allocate)):
                messages.setdefault(event.message.run, event.message)
        for run in sorted(messages):
            message = messages[run]
            if ends[run] is RunState.DONE:
                self._apply(message)
            elif run in began and isinstance(message, Submit):
                for argument in message.args:
                    self._undefine(argument)

    def _apply(self, message: Any) -> None:
        if isinstance(message, Allocate):
            for tensor in message.tensors:
                self.device[tensor.allocation] = np.zeros(tensor.shape, tensor.dtype)
                self.device_undefined[tensor.allocation] = np.zeros(tensor.shape, bool)
        if isinstance(message, (Allocate, Copy)):
            for piece in message.pieces:
                assert isinstance(piece, (Write, Read, Transfer))
                self._move(piece.source, piece.target)
            return
        kind, args = message.program.name[:-1], message.args
        if kind == "copy":
            self._move(args[0], args[1])
        elif kind == "affine":
            self._affine(args[0], args[1], args[2])
        elif kind == "nap":
            self._affine(args[0], args[1], args[2])
            self._side(args[0])[0][...] += 1
            self._affine(args[0], args[1], args[2])
        elif kind == "relay":
            value, undefined = (one.copy() for one in self._side(args[0]))
            value = ((value * 3 + 1) % PRIME * 5 + 2) % PRIME
            target, target_undefined = self._side(args[1])
            target[...], target_undefined[...] = value, undefined

    def _affine(self, argument: Any, times: int, plus: int) -> None:
        value = self._side(argument)[0]
        value[...] = (value * times + plus) % PRIME

    def _move(self, source: Any, target: Any) -> None:
        value, undefined = (one.copy() for one in self._side(source))
        into, into_undefined = self._side(target)
        into[...], into_undefined[...] = value, undefined

    def _undefine(self, argument: Any) -> None:
        if isinstance(argument, (np.ndarray, DeviceTensor)):
            self._side(argument)[1][...] = True

    def _side(self, argument: Any) -> tuple[Array, Array]:
        """The model's values of an argument, and its mask of undefined ones."""
        if isinstance(argument, DeviceTensor):
            start = argument.offset // argument.dtype.itemsize
            part = slice(start, start + argument.nbytes // argument.dtype.itemsize)
            whole = self.device.get(argument.allocation)
            if whole is None:
                return np.zeros(argument.shape, argument.dtype), np.zeros(argument.shape, bool)
            return whole[part], self.device_undefined[argument.allocation][part]
        if not np.shares_memory(argument, self._real):  # an array that only one call knows
            return argument.copy(), np.zeros(argument.shape, bool)
        start = (argument.__array_interface__["data"][0] - self._real.__array_interface__["data"][0]) // 8
        stop = start + len(argument) * argument.strides[0] // 8
        part = slice(start, stop if stop >= 0 else None, argument.strides[0] // 8)
        return self.host[part], self.host_undefined[part]
