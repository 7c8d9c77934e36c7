"""Random programs over several devices against plain numpy, step by step: whatever overlaps, the bytes are those of the recorded order.

Steps use whole arguments, rows and ranges of rows; arguments may be views of one buffer. Devices take random (virtual) times, so that an
order that is missing shows. Breaks that this catches, each found once by a test like it: a step after a gang that waits for one member
only; a step that waits for two others of which each is taken to imply the other; arguments with memory in common whose steps overlap.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest

import pypto_actors as pa
import pypto_actors.testing as testing
from tests.devices.slow import SlowBackend

Array: TypeAlias = np.ndarray[Any, Any]
Row: TypeAlias = int | slice | None  # what a step takes of a tensor
ROWS, COLUMNS = 4, 2
PRIME = 10_007


@pa.kernel
def mix(a: pa.InArray, b: pa.InOutArray, value: int) -> None:
    b[...] = (b * 3 + a.sum() + value) % PRIME


@pa.kernel
def scale(x: pa.InOutArray, value: int) -> None:
    x[...] = (x * 7 + value) % PRIME


def adding(value: int) -> Callable[[Array], Awaitable[None]]:
    async def callback(x: Array) -> None:
        await asyncio.sleep(0)
        x[...] = (x * 5 + value) % PRIME

    return callback


def taken(tensor: Any, row: Row) -> Any:
    return tensor if row is None else tensor[row]


class Script:
    """The steps of one program, which can be recorded or done by numpy."""

    def __init__(self, chance: random.Random, world: int, count: int) -> None:
        self.world = world
        self.count = count
        self.homes = [chance.randrange(world) for _ in range(2)]  # of the scratch tensors
        self.steps = [self._step(chance) for _ in range(chance.randrange(2, 10))]

    def _ref(self, chance: random.Random) -> tuple[int, Row]:
        first = chance.randrange(ROWS)
        return chance.randrange(self.count + 2), chance.choice([None, first, slice(first, chance.randrange(first, ROWS) + 1)])

    def _step(self, chance: random.Random) -> tuple[Any, ...]:
        value = chance.randrange(100)
        match chance.choices(("mix", "callback", "copy", "barrier", "gang", "allreduce"), (12, 3, 2, 2, 3, 2))[0]:
            case "mix":
                a, b = self._ref(chance), self._ref(chance)
                homes = {self.homes[index - self.count] for index, _ in (a, b) if index >= self.count}
                device = chance.choice([None, *range(self.world)])
                return ("mix", a, b, value, homes.pop() if len(homes) == 1 and device is not None else device, len(homes) > 0)
            case "callback":
                return ("callback", self._ref(chance), value)
            case "copy":
                return ("copy", *(chance.randrange(self.count) for _ in range(2)), *(chance.randrange(ROWS) for _ in range(2)))
            case "gang":
                return ("gang", chance.randrange(self.count), value)
            case "allreduce":
                return ("allreduce", value)
            case _:
                return ("barrier",)

    def record(self, orch: pa.Orchestrator, refs: Sequence[Any]) -> None:
        tensors = [*refs, *(orch.empty((ROWS, COLUMNS), np.int64, device=home) for home in self.homes)]
        window = orch.window("w", (COLUMNS,), np.int64)
        for step in self.steps:
            match step:
                case ("mix", (one, row), (two, other), value, device, at_home):
                    homes = {self.homes[index - self.count] for index in (one, two) if index >= self.count}
                    if len(homes) < 2:
                        orch.submit(mix, taken(tensors[one], row), taken(tensors[two], other), value, device=None if at_home else device)
                case ("callback", (one, row), value):
                    orch.submit_sub(adding(value), taken(tensors[one], row))
                case ("copy", one, two, row, other):
                    orch.copy(tensors[one][row], tensors[two][other])
                case ("gang", one, value):
                    members = [(tensors[one][0], value), (tensors[one][1:3], value)][: self.world]
                    orch.submit_group(scale, members, devices=range(len(members)))
                case ("allreduce", value):
                    orch.submit(scale, window[0], value, device=0)
                    orch.allreduce(window)
                    orch.submit(mix, window[self.world - 1], tensors[0], value, device=self.world - 1)
                case _:
                    orch.barrier()

    def compute(self, arrays: Sequence[Array]) -> None:
        tensors = [*arrays, *(np.zeros((ROWS, COLUMNS), np.int64) for _ in self.homes)]
        window = np.zeros((self.world, COLUMNS), np.int64)
        for step in self.steps:
            match step:
                case ("mix", (one, row), (two, other), value, _, _):
                    homes = {self.homes[index - self.count] for index in (one, two) if index >= self.count}
                    if len(homes) < 2:
                        mix(taken(tensors[one], row), taken(tensors[two], other), value)
                case ("callback", (one, row), value):
                    part = taken(tensors[one], row)
                    target = part if isinstance(part, np.ndarray) else tensors[one]
                    target[...] = (target * 5 + value) % PRIME
                case ("copy", one, two, row, other):
                    tensors[one][row] = tensors[two][other].copy()
                case ("gang", one, value):
                    for rows in (0, slice(1, 3))[: self.world]:
                        scale(tensors[one][rows], value)
                case ("allreduce", value):
                    scale(window[0], value)
                    window[...] = window.sum(0)
                    mix(window[self.world - 1], tensors[0], value)
                case _:
                    pass


def arguments(chance: random.Random, count: int, shared: bool) -> tuple[Array, list[Array]]:
    """The buffer, and views of it: apart from each other, or anywhere."""
    rows = ROWS * count + 6
    flat = np.arange(rows * COLUMNS, dtype=np.int64)
    base: Array = flat.reshape(rows, COLUMNS) if chance.random() < 0.5 else flat.reshape(COLUMNS, rows).T
    starts = [chance.randrange(6) if shared else index * ROWS for index in range(count)]
    return base, [base[start : start + ROWS] for start in starts]


async def check(seed: int) -> None:
    chance = random.Random(seed)
    world, count = chance.randrange(1, 4), chance.randrange(1, 4)
    script = Script(chance, world, count)
    names = ", ".join(f"x{index}: pa.InOutArray" for index in range(count))
    scope: dict[str, Any] = {"pa": pa, "script": script}
    exec(
        f"def program(orch: pa.Orchestrator, {names}) -> None:\n    script.record(orch, [{', '.join(f'x{i}' for i in range(count))}])",
        scope,
    )
    program = pa.program(scope["program"])
    backend = SlowBackend(seed)
    async with pa.DistributedWorker(program, config=pa.DistributedConfig(range(world)), backend=backend) as worker:
        for _ in range(3):
            draw = chance.randrange(1 << 30)
            base, given = arguments(random.Random(draw), count, shared := chance.random() < 0.6)
            model, modelled = arguments(random.Random(draw), count, shared)
            await worker.run(program, *given, device=chance.choice([None, *range(world)]))
            script.compute(modelled)
            np.testing.assert_array_equal(base, model, f"seed {seed}, {world} devices: {script.steps}")


@pytest.mark.timeout(900)
def test_random_programs_are_as_numpy_does_them(seeds: range) -> None:
    for seed in seeds[::3]:
        with asyncio.Runner(loop_factory=functools.partial(testing.SeededLoop, seed, virtual_time=True)) as runner:
            runner.run(check(seed))
