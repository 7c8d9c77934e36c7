"""Guarantees 4, 5 and 6, in virtual time where there is time. Breaks that these catch: deadlines that are not checked at the hand-over, a
priority that overtakes for ever, room that is given twice, a `submit_nowait` that jumps the queue, tensors not checked again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import pypto_actors as pa
from pypto_actors.testing import VirtualTimeLoop
from tests.guarantees.support import Hold, adder, noter, turns, worker, zeros


def in_virtual_time(main: Any) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


def test_deadlines_of_what_is_queued() -> None:
    async def main() -> None:
        hold, add, loop = Hold(), adder(), asyncio.get_running_loop()
        async with worker(hold.program, add, backend="inline", max_queued=2) as w:
            x = zeros()
            running = w.submit_nowait(hold.program, x, 1, deadline=loop.time() + 1)
            await hold.at.wait()
            queued = w.submit_nowait(add, x, 10, deadline=loop.time() + 5)
            past = w.submit_nowait(add, zeros(), 1, deadline=loop.time() - 1)
            await asyncio.sleep(0)
            keeps = w.submit_nowait(add, x, 100, deadline=loop.time() + 50)
            waits = asyncio.create_task(w.submit(add, x, 1000, deadline=loop.time() + 2))
            for handle, at in ((past, 0), (waits, 2), (queued, 5)):
                with pytest.raises(pa.DeadlineExceededError):
                    await handle
                assert loop.time() == at
            hold.open()
            await asyncio.gather(running, keeps)
            assert x.tolist() == [101] * 4
            assert (w.statistics().expired, w.statistics().accepted) == (2, 4)

    in_virtual_time(main)


async def test_a_deadline_that_passed_while_the_loop_was_blocked() -> None:
    add = adder()
    async with worker(add, backend="inline") as w:
        x, loop = zeros(), asyncio.get_running_loop()
        deadline = loop.time() + 0.001
        handle = w.submit_nowait(add, x, 1, deadline=deadline)
        while loop.time() <= deadline:  # a caller that does not yield
            pass
        with pytest.raises(pa.DeadlineExceededError):
            await handle
    assert x.tolist() == [0] * 4


def test_nobody_is_overtaken_more_than_64_times() -> None:
    async def main() -> list[int]:
        log: list[int] = []
        note = noter(log)
        async with worker(note, backend="inline", policy=pa.PriorityOrder()) as w:
            await w.pause("keep")
            low = w.submit_nowait(note, -1, priority=-5)
            rest = [w.submit_nowait(note, tag, priority=5) for tag in range(200)]
            await w.resume()
            await asyncio.gather(low, *rest)
        return log

    assert in_virtual_time(main).index(-1) == 64


def test_equal_priorities_keep_their_order() -> None:
    async def main() -> list[int]:
        log: list[int] = []
        note = noter(log)
        async with worker(note, backend="inline") as w:
            await asyncio.gather(*[w.submit_nowait(note, tag, priority=tag % 3) for tag in range(12)])
        return log

    assert in_virtual_time(main) == [2, 5, 8, 11, 1, 4, 7, 10, 0, 3, 6, 9]


async def test_a_full_queue_refuses_and_lets_in_in_order() -> None:
    log: list[int] = []
    hold, note = Hold(), noter(log)
    async with worker(hold.program, note, backend="inline", max_queued=2) as w:
        await w.pause("keep")
        handles = [w.submit_nowait(note, tag) for tag in range(2)]
        with pytest.raises(pa.QueueFullError) as full:
            w.submit_nowait(note, 99)
        assert (full.value.queued, full.value.limit) == (2, 2)
        waiting = [asyncio.create_task(w.submit(note, tag)) for tag in range(2, 8)]
        await turns()
        assert not any(task.done() for task in waiting)
        handles[0].cancel()
        with pytest.raises(pa.QueueFullError):  # the room is another's already
            w.submit_nowait(note, 99)
        await turns()
        assert [task.done() for task in waiting] == [True] + [False] * 5
        await w.resume()
        await asyncio.gather(*await asyncio.gather(*waiting))
    assert log == list(range(1, 8))


async def test_who_waited_is_checked_again() -> None:
    add, other = adder(0), noter([])
    async with worker(add, other, backend="inline", max_queued=1) as w:
        t = await w.alloc_tensor((4,), "int64")
        await w.pause("keep")
        first = w.submit_nowait(add, zeros(), 1)
        stale = asyncio.create_task(w.submit(add, t, 1))
        unknown = asyncio.create_task(w.submit(other, 1))
        fine = asyncio.create_task(w.submit(add, zeros(), 1))
        await turns()
        await w.free_tensor(t)
        registration = await w.register(other)
        await registration.unregister()
        await w.resume()
        with pytest.raises(pa.StaleTensorError):
            await stale
        with pytest.raises(pa.UnknownProgramError):
            await unknown
        await asyncio.gather(first, await fine)


def test_faults_are_found_when_the_queue_is_full_too() -> None:
    async def main() -> None:
        add = adder()
        async with worker(add, backend="inline", max_queued=1) as w:
            await w.pause("keep")
            first = w.submit_nowait(add, zeros(), 1)
            for args in ((zeros(), "1"), (zeros(),), (zeros().astype("f4"), 1)):
                with pytest.raises((pa.ArgumentTypeError, pa.ArgumentValueError)):
                    await w.submit(add, *args)
            await w.resume()
            await first

    in_virtual_time(main)


@pytest.mark.parametrize(("policy", "most"), [(pa.PhaseFair(2, 16), 2), (pa.PhaseFair(5, 1), 5), (pa.Arrival(), 40)])
def test_a_flood_of_prefill_and_decode(policy: pa.Policy, most: int) -> None:
    """`Arrival` is the control: with it the flood starves decode."""

    async def main() -> list[int]:
        log: list[int] = []
        prefill, decode = noter(log, stage="prefill"), noter(log, stage="decode")
        async with worker(prefill, decode, backend="inline", policy=policy, in_flight=1) as w:
            flood = [w.submit_nowait(prefill, 0) for _ in range(40)]
            await asyncio.gather(*flood, *[w.submit_nowait(decode, 1) for _ in range(5)])
        return log

    text = "".join(map(str, in_virtual_time(main)))
    gaps = [len(gap) for gap in text[: text.rindex("1")].split("1")]
    assert max(gaps) == most


def test_a_flood_of_decode_does_not_starve_prefill() -> None:
    async def main() -> list[int]:
        log: list[int] = []
        prefill, decode = noter(log, stage="prefill"), noter(log, stage="decode")
        async with worker(prefill, decode, backend="inline", policy=pa.PhaseFair(2, 16)) as w:
            flood = [w.submit_nowait(decode, 1) for _ in range(60)]
            await asyncio.gather(*flood, *[w.submit_nowait(prefill, 0) for _ in range(3)])
        return log

    text = "".join(map(str, in_virtual_time(main)))
    assert max(len(gap) for gap in text[: text.rindex("0")].split("0")) == 16
