"""`SeededLoop`: one ready callback at a time, picked by a seed, to find races that asyncio's fixed order hides.

    for seed in range(1000):
        with asyncio.Runner(loop_factory=functools.partial(SeededLoop, seed, virtual_time=True)) as runner:
            runner.run(scenario())

Time is real unless `virtual_time=True`, so that it runs every backend; virtual time is for `backend="inline"`.

**What is permuted, and what is not.** Steps of different tasks have no promised order, so any ready task may be next,
however late it came. asyncio promises that `call_soon` is first in, first out, so all other callbacks (done callbacks,
timers, sockets, calls from threads, a library's own `call_soon`) keep their order among themselves; the next of them is
one more candidate besides the ready tasks, and so runs before or after any of these. One thing more is promised: what a
future calls when it is done is called in the order in which it was added. So a task that awaits a future does not
overtake a done callback that was added before, nor such a callback the task; several tasks that await one future are
free again.

**Reproducible.** The same seed and program give the same schedule in every process: candidates stand in the order in
which their tasks were made, never in one of addresses or hashes, and tasks hash by number, so that sets of them (in
anyio's cancel scopes, `asyncio.all_tasks`) iterate alike. Threads and sockets have a time of their own and are outside
of this, and so are tasks of a task factory that the program sets.

One pick a turn matters: shuffling each batch of ready callbacks, the cheaper way, keeps all tasks in step and found
none of the races that were planted to choose between the two.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import operator
import random
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any

from pypto_actors.testing.virtual_time import NanosecondLoop

_Coroutine = Coroutine[Any, Any, Any] | Generator[Any, None, Any]


class SeededTask(asyncio.Task[Any]):
    """A task that hashes by its number, which its loop gives in the order of creation, and not by its address."""

    def __init__(self, coro: _Coroutine, *, loop: SeededLoop, **options: Any) -> None:
        self.number = next(loop.task_numbers)  # first, since asyncio puts the task into a set as it is made
        super().__init__(coro, loop=loop, **options)  # type: ignore[arg-type, unused-ignore]  # newer stubs know no generators

    def __hash__(self) -> int:
        return self.number


class SeededLoop(NanosecondLoop):
    """Runs one ready callback a turn, picked by `seed`; with `virtual_time=True` in virtual time.

    Time is real by default, so that every backend may run on it. In virtual time, which is for `backend="inline"`, a deadlock is
    reported as by `VirtualTimeLoop`. `decisions` counts the turns that had a choice.
    """

    def __init__(self, seed: int, *, virtual_time: bool = False) -> None:
        super().__init__()
        self.seed = seed
        self.virtual_time = virtual_time
        self.decisions = 0
        self._random = random.Random(seed).random
        self._steps: list[_Entry] = []  # free task steps, by number
        self._lane: deque[_Entry] = deque()  # all other callbacks, first in, first out
        self.task_numbers = itertools.count(1)
        self.set_task_factory(_make_task)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, seed {self.seed}>"

    def _pending(self) -> bool:
        return bool(self._ready or self._steps or self._lane)

    def _run_ready(self) -> None:
        self._sort_in()
        if self._steps or self._lane:
            self._run_one()
        if self._stopping:  # whatever was ready when `stop` was called still runs, as in asyncio
            self._sort_in()
            while self._steps or self._lane:
                self._run_one()

    def _sort_in(self) -> None:
        """Sort what came since the last turn. What one future calls is scheduled in one go, so it is here together."""
        ready = self._ready
        batches: dict[int, _Batch] = {}
        while ready:
            handle = ready.popleft()
            if handle._cancelled:
                continue
            task = _task_of(handle)
            entry = _Entry(handle, task)
            args = handle._args
            if len(args) == 1 and isinstance(args[0], asyncio.Future):
                batches.setdefault(id(args[0]), _Batch()).add(entry)
            if not entry.is_step:
                self._lane.append(entry)
            elif not entry.blockers:
                bisect.insort(self._steps, entry, key=_number)

    def _run_one(self) -> None:
        steps, lane = self._steps, self._lane
        choices = len(steps) + (1 if lane and not lane[0].blockers else 0)
        picked = 0
        if choices > 1:
            self.decisions += 1
            picked = int(self._random() * choices)
        entry = steps.pop(picked) if picked < len(steps) else lane.popleft()
        for freed in entry.frees:
            freed.blockers -= 1
            if freed.is_step and not freed.blockers:
                bisect.insort(steps, freed, key=_number)
        self._run_handle(entry.handle)

    def close(self) -> None:
        """Close the loop; what is ready does not run any more."""
        super().close()
        self._steps.clear()
        self._lane.clear()


class _Entry:
    """A ready callback; `blockers` counts the entries that must run first, `frees` are those that wait for this one."""

    __slots__ = ("blockers", "frees", "handle", "is_step", "number")

    def __init__(self, handle: asyncio.Handle, task: asyncio.Task[Any] | None) -> None:
        self.handle = handle
        self.is_step = task is not None
        self.number: int = getattr(task, "number", 0)
        self.blockers = 0
        self.frees: list[_Entry] = []


class _Batch:
    """What one future calls: done callbacks and tasks keep their mutual order, tasks among themselves are free."""

    __slots__ = ("callback", "steps")

    def __init__(self) -> None:
        self.callback: _Entry | None = None
        self.steps: list[_Entry] = []

    def add(self, entry: _Entry) -> None:
        if entry.is_step:
            if self.callback is not None:
                self.callback.frees.append(entry)
                entry.blockers = 1
            self.steps.append(entry)
            return
        for step in self.steps:
            step.frees.append(entry)
        entry.blockers = len(self.steps)
        self.steps = []
        self.callback = entry


_number = operator.attrgetter("number")


def _task_of(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    """The task whose step this is; None for any other callback, also for another method of a task."""
    callback = handle._callback  # type: ignore[attr-defined]
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return None
    name = getattr(callback, "__name__", "")
    is_step = name in _STEP_NAMES or type(callback).__name__ == "TaskStepMethWrapper"
    return task if is_step else None


# What asyncio calls the step of a task; its accelerator also has `TaskStepMethWrapper`, which has no name.
_STEP_NAMES = frozenset({"task_wakeup", "__step", "__wakeup"})


def _make_task(loop: asyncio.AbstractEventLoop, coro: _Coroutine, **options: Any) -> asyncio.Task[Any]:
    assert isinstance(loop, SeededLoop)
    return SeededTask(coro, loop=loop, **options)
