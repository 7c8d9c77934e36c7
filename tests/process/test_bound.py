"""Bound programs on `process`: what is fixed crosses once, the rest with each call; small arrays that are only read go in the message.

Breaks that this catches, each planted once in a copy: a small array is put into the message although a dispatch under way still writes
its bytes, the rest is filled into the wrong slots, a call is found again after another took its plan, and what gives way is not told.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pytest

import pypto_actors as pa
from pypto_actors.backends.known_calls import Known, KnownCalls
from pypto_actors.backends.process_staging import MOST_IN_MESSAGE
from pypto_actors.plan import Plan
from tests.process.support import I64, Array, Vec, opened

LARGE = MOST_IN_MESSAGE // 8 + 1
Read = Annotated[pa.TensorRef, pa.In(Vec, I64)]
Written = Annotated[pa.TensorRef, pa.InOut(Vec, I64)]
Fixed = Annotated[pa.TensorRef, pa.In((4,), I64)]


@pa.kernel
def blend(a: pa.InArray, x: pa.InArray, b: pa.InArray, y: pa.InOutArray, c: pa.InArray, times: int, d: pa.InOutArray) -> None:
    y[...] = (y * times + x + a[0] + 2 * b[0] + 3 * c[0] + d[0]) % 1_000_003
    d += 1


@pa.program()
def blended(
    orch: pa.Orchestrator, a: Fixed, x: Read, b: Fixed, y: Written, c: Fixed, times: int, d: Annotated[pa.TensorRef, pa.InOut((4,), I64)]
) -> None:
    orch.submit(blend, a, x, b, y, c, times, d)


async def fixed_on(worker: pa.DistributedWorker, device: int = 0) -> dict[str, pa.DeviceTensor]:
    """Enough tensors for a bound program to treat them together."""
    return {
        name: await worker.alloc_tensor((4,), I64, init=np.full(4, number, I64), device=device) for number, name in enumerate("abcd", 1)
    }


async def chains(backend: str, seed: int) -> tuple[list[list[int]], list[int]]:
    """Calls that read what others of the same chain write, in flight together; small arrays, large ones, and views of both."""
    chance = random.Random(seed)
    pools = [np.arange(3 * n, dtype=I64) % 17 for n in (6, LARGE)]
    async with opened(blended, backend=backend, in_flight=8) as worker:
        fixed = await fixed_on(worker)
        bound = [worker.bind(blended, **fixed) for _ in range(2)]

        def view(n: int, pool: Array) -> Array:
            start, step = chance.randrange(len(pool) - 2 * n + 1), chance.choice((1, 2))
            return pool[start : start + step * n : step]

        handles = []
        for _ in range(30):
            pool = chance.choice(pools)
            n = chance.choice((len(pool) // 3, 3))
            x, y = view(n, pool), view(n, pool)
            if not np.shares_memory(x, y):
                handles.append(chance.choice(bound).submit_nowait(x, y, chance.randrange(5)))
        for handle in handles:
            await handle
        return [pool.tolist() for pool in pools], (await worker.read(fixed["d"])).tolist()


@pytest.mark.parametrize("seed", range(12))
async def test_chains_of_bound_calls_are_those_of_thread(seed: int) -> None:
    assert await chains("process", seed) == await chains("thread", seed)


@pytest.mark.parametrize("n", [3, LARGE])
async def test_what_is_only_read_is_read_only(n: int) -> None:
    @pa.kernel
    def wrong(a: pa.InArray, b: pa.InArray, c: pa.InArray, d: pa.InArray, x: pa.InArray) -> None:
        x[0] = 1

    @pa.program()
    def program(orch: pa.Orchestrator, a: Fixed, b: Fixed, c: Fixed, d: Fixed, x: Read) -> None:
        orch.submit(wrong, a, b, c, d, x)

    x: Array = np.zeros(n, I64)
    async with opened(program) as worker:
        bound = worker.bind(program, **await fixed_on(worker))
        for _ in range(2):
            with pytest.raises(pa.KernelError) as caught:
                await bound(x)
            assert isinstance(caught.value.__cause__, ValueError)
    assert not x.any()


async def test_bound_calls_end_with_what_they_have_fixed() -> None:
    """Memory that takes the place of freed memory is found by its own bytes."""
    async with opened(blended) as worker:
        for round_ in range(3):
            fixed = await fixed_on(worker)
            bound = worker.bind(blended, **fixed)
            for call in range(3):
                y: Array = np.full(4, round_, I64)
                await bound(np.full(4, call, I64), y, 10)
                assert set(y.tolist()) == {round_ * 10 + call + 1 + 4 + 9 + 4 + call}
            for tensor in fixed.values():
                await worker.free_tensor(tensor)
            with pytest.raises(pa.StaleTensorError):
                await bound(np.zeros(4, I64), np.zeros(4, I64), 1)


async def test_more_bound_programs_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pypto_actors.backends.known_calls.MOST", 3)
    async with opened(blended) as worker:
        fixed = await fixed_on(worker)
        bounds = [worker.bind(blended, **fixed) for _ in range(8)]
        expected = 4
        for _ in range(3):
            for bound in bounds:
                y: Array = np.zeros(2, I64)
                await bound(np.zeros(2, I64), y, 1)
                assert set(y.tolist()) == {1 + 4 + 9 + expected}
                expected += 1


def plan() -> Plan:
    return Plan("some", (), (0,), 0, (), (), {}, 0)


@pytest.mark.parametrize("seed", range(50))
def test_known_calls_are_those_of_a_plain_model(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device knows is always what the calls that can be found say that it knows."""
    monkeypatch.setattr("pypto_actors.backends.known_calls.MOST", 5)
    chance = random.Random(seed)
    plans = [plan(), plan()]
    ofs: Sequence[tuple[Any, ...]] = [(number, object()) for number in range(8)]
    calls = KnownCalls()
    at_device: dict[int, Known] = {}
    memory: dict[int, set[int]] = {}
    for number in range(200):
        if chance.random() < 0.6:
            known = Known(chance.choice(ofs), chance.choice(plans), number)
            if calls.find(known.of, known.plan) is not None:
                continue
            memory[number] = {chance.randrange(6) for _ in range(2)}
            gone = calls.keep(known, memory[number])
            at_device[number] = known
        else:
            allocation = chance.randrange(6)
            gone = calls.released([allocation])
            assert not [other for other in at_device if other not in gone and allocation in memory[other]]
        assert len(set(gone)) == len(gone)
        for other in gone:
            del at_device[other]
        assert len(at_device) <= 5
        for known in at_device.values():
            assert calls.find(known.of, known.plan) is known
            assert calls.find(known.of, plans[known.plan is plans[0]]) is None


def test_known_calls_keep_no_books_of_what_they_have_forgotten() -> None:
    calls, one = KnownCalls(), plan()
    kept = ("kept",)
    calls.keep(Known(kept, one, 1), [1, 2, 2])
    for number in range(2, 6):
        args = (number,)
        assert calls.keep(Known(args, one, number), [1, 3]) == []
        assert calls.released([3]) == [number]
    assert calls.find(kept, one) is not None
    assert calls._users == {1: {id(kept)}, 2: {id(kept)}}
    assert calls.released([2]) == [1]
    assert not calls._users
    assert not calls._names
