"""The programs of the chaos, and for each what it does to a plain model of memory. None of them commute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

import pypto_actors as pa

I64 = np.int64
Vec = ("n",)
PRIME = 1_000_003
Ints = npt.NDArray[np.int64]
LATE: list[str] = []


class Cells:
    """Model of some memory: its values, and which of them are undefined since something that wrote them failed."""

    def __init__(self, values: Ints, undefined: npt.NDArray[np.bool_]) -> None:
        self.values = values
        self.undefined = undefined

    @classmethod
    def of(cls, values: Ints) -> Cells:
        return cls(values.copy(), np.zeros(values.shape, np.bool_))

    def cut(self, start: int, stop: int) -> Cells:
        return Cells(self.values[start:stop], self.undefined[start:stop])

    def become(self, values: Ints, undefined: npt.NDArray[np.bool_]) -> None:
        values, undefined = values.copy(), undefined.copy()
        self.values[...] = values
        self.undefined[...] = undefined

    def lose(self) -> None:
        self.undefined[...] = True


class FaultError(Exception):
    """What the failing kernels raise."""


@pa.kernel
def affine_kernel(x: pa.InOutArray, a: int, b: int) -> None:
    x[...] = (x * a + b) % PRIME


@pa.kernel
def blend_kernel(x: pa.InArray, y: pa.InArray, z: pa.OutArray) -> None:
    z[...] = (x * 3 + y * 5 + 1) % PRIME


@pa.kernel
def explode_kernel(x: pa.InOutArray) -> None:
    x[...] = -1
    raise FaultError


@pa.kernel
def late_kernel(x: pa.InOutArray) -> None:
    LATE.append("a step ran after one that it waits for had failed")


async def slow_callback(x: Any, b: int) -> int:
    await asyncio.sleep(0.001 * (b % 7))
    x[...] = (x * 7 + b) % PRIME
    await asyncio.sleep(0)
    return int(x.sum())


def quick_callback(x: Any, b: int) -> int:
    x[...] = (x * 11 + b) % PRIME
    return int(x.sum())


async def failing_callback(x: Any) -> None:
    x[...] = -2
    await asyncio.sleep(0.002)
    raise FaultError


InVec = Annotated[pa.TensorRef, pa.In(Vec, I64)]
OutVec = Annotated[pa.TensorRef, pa.Out(Vec, I64)]
InOutVec = Annotated[pa.TensorRef, pa.InOut(Vec, I64)]


@pa.program(stage="decode")
def affine(orch: pa.Orchestrator, x: InOutVec, b: int) -> None:
    orch.submit(affine_kernel, x, 3, b)


@pa.program(stage="prefill")
def twice(orch: pa.Orchestrator, x: InOutVec, b: int) -> None:
    orch.submit(affine_kernel, x, 5, b)
    orch.submit(affine_kernel, x, 2, 9)


@pa.program
def move(orch: pa.Orchestrator, src: InVec, dst: OutVec, b: int) -> None:
    orch.copy(dst, src)


@pa.program(stage="prefill")
def blend(orch: pa.Orchestrator, x: InVec, y: InVec, z: OutVec, b: int) -> None:
    orch.submit(blend_kernel, x, y, z)


@pa.program
def relay(orch: pa.Orchestrator, src: InVec, dst: OutVec, b: int) -> None:
    """By way of scratch on the first and on the last device."""
    last = orch.world_size - 1
    near, far = orch.empty(src.shape, I64, device=0), orch.empty(src.shape, I64, device=last)
    orch.copy(near, src)
    orch.submit(affine_kernel, near, 3, b, device=0)
    orch.copy(far, near)
    orch.submit(affine_kernel, far, 7, b, device=last)
    orch.copy(dst, far)


@pa.program(stage="decode")
def called(orch: pa.Orchestrator, x: InOutVec, b: int) -> None:
    orch.submit(affine_kernel, x, 3, b)
    orch.submit_sub(slow_callback, x, b)
    orch.submit(affine_kernel, x, 5, b)


@pa.program
def noted(orch: pa.Orchestrator, x: InOutVec, b: int) -> None:
    orch.submit_sub(quick_callback, x, b)


@pa.program
def both(orch: pa.Orchestrator, x: InOutVec, y: InOutVec, b: int) -> None:
    """Where `x` and `y` live on two devices, both work at once, and then one reads the other."""
    orch.submit(affine_kernel, x, 3, b)
    orch.submit(affine_kernel, y, 5, b)
    orch.copy(x, y)
    orch.submit(affine_kernel, x, 2, b)
    orch.submit(affine_kernel, y, 7, b)


@pa.program(stage="decode")
def failing(orch: pa.Orchestrator, x: InOutVec, b: int) -> None:
    orch.submit(affine_kernel, x, 3, b)
    orch.submit(explode_kernel, x)
    orch.submit(late_kernel, x)


@pa.program
def failing_late(orch: pa.Orchestrator, x: InOutVec, b: int) -> None:
    orch.submit(affine_kernel, x, 3, b)
    orch.submit_sub(failing_callback, x)
    orch.submit(late_kernel, x)


def _affine(x: Cells, a: int, b: int) -> None:
    x.become((x.values * a + b) % PRIME, x.undefined)


def _of_affine(x: Cells, b: int) -> tuple[int | None, ...]:
    _affine(x, 3, b)
    return ()


def _of_twice(x: Cells, b: int) -> tuple[int | None, ...]:
    _affine(x, 5, b)
    _affine(x, 2, 9)
    return ()


def _of_move(src: Cells, dst: Cells, b: int) -> tuple[int | None, ...]:
    dst.become(src.values, src.undefined)
    return ()


def _of_blend(x: Cells, y: Cells, z: Cells, b: int) -> tuple[int | None, ...]:
    z.become((x.values * 3 + y.values * 5 + 1) % PRIME, x.undefined | y.undefined)
    return ()


def _of_relay(src: Cells, dst: Cells, b: int) -> tuple[int | None, ...]:
    near = (src.values * 3 + b) % PRIME
    dst.become((near * 7 + b) % PRIME, src.undefined)
    return ()


def _total(x: Cells) -> int | None:
    return None if x.undefined.any() else int(x.values.sum())


def _of_called(x: Cells, b: int) -> tuple[int | None, ...]:
    _affine(x, 3, b)
    _affine(x, 7, b)
    total = _total(x)
    _affine(x, 5, b)
    return (total,)


def _of_noted(x: Cells, b: int) -> tuple[int | None, ...]:
    _affine(x, 11, b)
    return (_total(x),)


def _of_both(x: Cells, y: Cells, b: int) -> tuple[int | None, ...]:
    _affine(x, 3, b)
    _affine(y, 5, b)
    x.become(y.values, y.undefined)
    _affine(x, 2, b)
    _affine(y, 7, b)
    return ()


Effect = Callable[..., tuple[int | None, ...]]
EFFECTS: dict[pa.Program, Effect] = {
    affine: _of_affine,
    twice: _of_twice,
    move: _of_move,
    blend: _of_blend,
    relay: _of_relay,
    called: _of_called,
    noted: _of_noted,
    both: _of_both,
}
FAILING = (failing, failing_late)
ALL = (*EFFECTS, *FAILING)
