"""What the clients of one scenario share, and what each of their calls came to."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from msgspec import Struct

import pypto_actors as pa
from pypto_actors.messages import Submit
from tests.storms.programs import ALL, I64, FaultError, Ints, failing, failing_late

N = 4  # elements of every array; views have half of them


class Call(Struct):
    """One dispatch that a client asked for. `how`: run, submit or submit_nowait."""

    how: str
    result: pa.RunResult | None = None
    handle: pa.DistributedRunHandle | None = None
    error: BaseException | None = None


class World:
    def __init__(self, worker: pa.DistributedWorker, chance: random.Random) -> None:
        self.worker = worker
        self.chance = chance
        self.devices = worker.config.world_size
        self.calls: dict[int, Call] = {}
        self.tensors: list[pa.DeviceTensor] = []
        self.handles: list[pa.DistributedRunHandle] = []
        self.answers: list[tuple[pa.DistributedRunHandle, bool]] = []
        self.told: list[BaseException] = []
        self.hosts: list[tuple[Ints, Ints]] = []
        for number in range(3):
            first = np.arange(N, dtype=I64) + 10 * number
            self.hosts.append((first.copy(), first))

    # ------------------------------------------------------------------------------------------ arguments

    def tensor(self) -> pa.DeviceTensor | None:
        return self.chance.choice(self.tensors) if self.tensors else None

    def host(self) -> Ints:
        array = self.chance.choice(self.hosts)[0]
        return array[1:3] if self.chance.random() < 0.2 else array

    def array(self, size: int, device: int = -1) -> Any:
        """A host array, or a tensor on `device` (or any), of `size` elements."""
        known = [tensor for tensor in self.tensors if device in (-1, tensor.device)]
        value: Any = self.chance.choice(known) if known and self.chance.random() < 0.7 else self.chance.choice(self.hosts)[0]
        start = self.chance.randrange(N - size + 1)
        return value if size == N else value[start : start + size]

    def arguments(self, program: pa.Program) -> tuple[Any, ...]:
        """Fitting ones, mostly; the last is a number by which the dispatch is known again."""
        size = N if self.chance.random() < 0.8 else 2
        device = self.chance.choice((-1, self.chance.randrange(self.devices)))
        short = self.chance.random() < 0.15
        params = [parameter for parameter in program.params if parameter.name != "b"]
        given = [
            self.array(size, device) for parameter in params if not (short and parameter.array and parameter.array.mode.value == "Out")
        ]
        return (*given, len(self.calls) + 1)

    def program(self) -> pa.Program:
        if self.chance.random() < 0.15:
            return self.chance.choice((failing, failing_late))
        return self.chance.choice(ALL)

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"priority": self.chance.choice((0, 0, 0, 1, 3))}
        if self.chance.random() < 0.15:
            options["deadline"] = self.now() + self.chance.choice((-1.0, 0.0, 0.001, 0.004, 0.01))
        if self.handles and self.chance.random() < 0.2:
            options["after"] = self.chance.sample(self.handles, min(len(self.handles), self.chance.choice((1, 1, 2))))
        if self.chance.random() < 0.2:
            options["device"] = self.chance.randrange(self.devices)
        return options

    def now(self) -> float:
        system: Any = self.worker._system
        time: float = system.loop.time()
        return time

    # ------------------------------------------------------------------------------------------ outcomes

    def begin(self, how: str, number: int) -> Call:
        call = self.calls[number] = Call(how)
        return call

    def is_live(self, number: int) -> bool:
        """Is the dispatch known by `number` accepted and not ended?"""
        system: Any = self.worker._system
        messages = [record.message for record in system.coordinator.records.values()] + [message for message, _ in system.mail]
        return any(isinstance(message, Submit) and message.args[-1] == number for message in messages)

    def tell(self, error: BaseException) -> None:
        """A client was told of a failure: it must be its own, and no fault of the worker's."""
        assert not isinstance(error, pa.InternalError), error
        assert all(known is not error for known in self.told), "two waiters got one exception"
        self.told.append(error)
        if isinstance(error, pa.KernelError):
            assert isinstance(error.__cause__, FaultError), error.__cause__
            assert error.program in ("failing", "failing_late")
        if isinstance(error, pa.DependencyFailedError):
            assert isinstance(error.__cause__, pa.PyptoActorsError)
