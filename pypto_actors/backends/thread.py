"""`backend="thread"`: one thread for each device. numpy releases the GIL where it computes, so devices overlap."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

from pypto_actors.backends.local import Clock, LocalExecutor, execute, failed, size_of, stepping
from pypto_actors.backends.memory import Interconnect
from pypto_actors.backends.rendezvous import Deserted, Key
from pypto_actors.executor import Answer, Desk, Executor, clock_of
from pypto_actors.messages import Dispatch, Failed, Piece
from pypto_actors.plan import Part, Sync

LARGE_COPY = 1 << 17  # bytes; from here on a copy takes longer than the way to a thread and back
Work: TypeAlias = Callable[[], Any]
Ready: TypeAlias = tuple[Dispatch, Part, list[Any]]


class Inbox:
    """Answers on their way from threads to the loop: one deque, and one wake-up for all that come before it is heard.

    The wake-up is an eventfd that the loop watches where there are such: one write and one read. `call_soon_threadsafe` makes a handle
    and has the loop read its socket until that is empty.
    """

    __slots__ = ("_desk", "_fd", "answers", "awake", "loop", "wake")

    def __init__(self, loop: asyncio.AbstractEventLoop, desk: Desk) -> None:
        self.loop = loop
        self._desk = desk
        self.answers: deque[tuple[Answer, ThreadExecutor]] = deque()
        self.awake = False
        self._fd = -1
        self.wake: Callable[[], object] = partial(loop.call_soon_threadsafe, self.take)
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                loop.add_reader(fd, self._heard)
            except NotImplementedError:  # a loop that watches no files
                os.close(fd)
            else:
                self._fd = fd
                self.wake = partial(os.eventfd_write, fd, 1)

    def close(self) -> None:
        """All threads have ended."""
        if self._fd >= 0:
            self.loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def put(self, answer: Answer, executor: ThreadExecutor) -> None:
        """From any thread."""
        self.answers.append((answer, executor))
        if not self.awake:
            self.awake = True
            self.wake()

    def _heard(self) -> None:
        try:  # noqa: SIM105 (`suppress` makes an object, and this comes after every kernel)
            os.eventfd_read(self._fd)
        except BlockingIOError:  # a loop may call twice for one wake-up, if it looks again before it has called
            pass
        self.take()

    def take(self) -> None:
        self.awake = False  # before the answers are taken: who comes after them wakes the loop again
        answers = self.answers
        if len(answers) == 1:
            answer, executor = answers.popleft()
            if not executor.dead:
                self._desk.answered(answer)
            return
        while answers:
            answer, executor = answers.popleft()
            if not executor.dead:  # it may have died after it had handed it in
                self._desk.post(answer)
        self._desk.turn()


class WorkThread:
    """A thread that does what is put into its queue, in order, until it is told to end. Several may share a queue."""

    __slots__ = ("_queue", "_thread")

    def __init__(self, name: str, queue: SimpleQueue[Work | None] | None = None) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue() if queue is None else queue
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, work: Work) -> None:
        self._queue.put(work)

    def _run(self) -> None:
        get = self._queue.get
        while (work := get()) is not None:
            work()
            del work  # the next may be long in coming, and this one holds arrays

    def end(self) -> None:
        """No more work; returns at once, the thread ends after what it has."""
        self._queue.put(None)

    def join(self) -> None:
        self._thread.join()


class ThreadExecutor(LocalExecutor):
    """Kernels run in the device's thread; large copies in a second one, its copy engine, so that no kernel holds them up."""

    __slots__ = ("_copies", "_inbox", "_meetings", "_queue", "_thread")

    def __init__(self, rank: int, interconnect: Interconnect, desk: Desk, clock: Clock, inbox: Inbox) -> None:
        super().__init__(rank, interconnect, desk, clock)
        self._inbox = inbox
        self._queue: SimpleQueue[Ready | None] = SimpleQueue()
        self._copies: WorkThread | None = None
        self._meetings: set[tuple[int, int, int]] = set()  # (run, wave, part) of parts in hand that meet other devices
        self._thread = threading.Thread(target=self._serve, name=f"pypto-device-{rank}", daemon=True)
        self._thread.start()

    def dispatch(self, message: Dispatch) -> None:
        part = message.plan.parts[message.part]
        try:
            values = (self._views or self.views).values(part, message.args, message.scratch, message.plan, message.fixed)
        except Exception as error:
            self.unable(message, error)
            return
        if part.meeting:
            self._meetings.add((message.run, part.wave, part.index))
        self._queue.put((message, part, values))

    def _serve(self) -> None:
        """The device's thread: do what comes, in order, until it is told to end."""
        get, inbox, clock, rank = self._queue.get, self._inbox, self._clock, self._rank
        answers, wake = inbox.answers, inbox.wake
        while (ready := get()) is not None:
            message, part, values = ready
            if not part.plain:
                answer = self.over(message, self._step(message, part, values))
            elif self.dead:
                continue
            else:
                answer = execute(message, part, values, rank, clock)
            if not self.dead:
                answers.append((answer, self))  # what `Inbox.put` does
                if not inbox.awake:
                    inbox.awake = True
                    wake()
            del ready, message, values, answer  # the next may be long in coming, and these hold arrays

    def _step(self, message: Dispatch, part: Part, values: list[Any]) -> Answer:
        """A part that meets other devices, or in which others await something."""
        if self.dead:
            return failed(message, self._rank, "its device has died", self._clock())
        steps = stepping(message, part, values, self._rank, self._clock, self._reached)
        try:
            sync = next(steps)
            while True:
                try:
                    self._meet((message.run, part.wave), sync)
                except Deserted as error:
                    sync = steps.throw(error)
                else:
                    sync = next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer

    def over(self, message: Dispatch, answer: Answer) -> Answer:
        part = message.plan.parts[message.part]
        if part.meeting:
            self._meetings.discard((message.run, part.wave, part.index))
        return super().over(message, answer)

    def kill(self, reason: str) -> None:
        """Die; a kernel under way runs on to its end, but nobody waits for it."""
        super().kill(reason)
        for run, wave, _ in list(self._meetings):
            self._interconnect.rendezvous.desert((run, wave))

    def _reached(self, answer: Answer) -> None:
        if not self.dead:
            self._inbox.put(answer, self)

    def _meet(self, key: Key, sync: Sync) -> None:
        """Wait until all devices of the meeting have come; raises `Deserted` if one will not."""
        gate: SimpleQueue[bool] = SimpleQueue()
        if not self._interconnect.rendezvous.come(key, sync.number, sync.members, gate.put) and not gate.get():
            raise Deserted

    def copy(self, message: Piece) -> None:
        if size_of(message) < LARGE_COPY:
            self._desk.post(self.copied(message))
            return
        if self._copies is None:
            try:
                self._copies = WorkThread(f"pypto-copies-{self._rank}")
            except RuntimeError as error:  # there are no more threads to be had
                now = self._clock()
                self._desk.post(Failed(message.run, message.part, self._rank, -1, error, now, now))
                return
        self._copies.put(lambda: self._copied(message))

    def _copied(self, message: Piece) -> None:
        answer = self.copied(message)
        if not self.dead:
            self._inbox.put(answer, self)

    def end(self) -> None:
        """No more work; returns at once, the threads end after what they have."""
        self._queue.put(None)
        if self._copies is not None:
            self._copies.end()

    def join(self) -> None:
        self._thread.join()
        if self._copies is not None:
            self._copies.join()


class ThreadBackend:
    """Makes executors with a thread each."""

    name = "thread"
    virtual_time = False
    callbacks_in_threads = True

    def __init__(self) -> None:
        self._executors: list[ThreadExecutor] = []
        self._make: Callable[[int], ThreadExecutor] | None = None
        self._inbox: Inbox | None = None

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        self._interconnect = interconnect = Interconnect()
        self._inbox = inbox = Inbox(loop, desk)
        clock = clock_of(loop)
        self._make = lambda rank: ThreadExecutor(rank, interconnect, desk, clock, inbox)
        try:
            for rank in ranks:
                self._executors.append(self._make(rank))
        except BaseException:
            await self.stop()
            raise
        return tuple(self._executors)

    async def restart(self, rank: int) -> Executor:
        assert self._make is not None
        executor = self._make(rank)
        self._executors.append(executor)
        self._interconnect.revive(rank)
        return executor

    async def stop(self) -> None:
        executors, self._executors = self._executors, []
        for executor in executors:
            executor.end()
        for executor in executors:  # they are idle: all answers have come
            executor.join()
        if self._inbox is not None:
            self._inbox.close()
