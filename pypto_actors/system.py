"""The system of actors on one loop: mailboxes, and the turns in which their actors work. No task for anybody: one `call_soon` a turn.

A turn takes the coordinator's messages, lets it route, gives the devices theirs, and begins again with what they answered; after 64
messages to devices it lets the loop do something else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import NoReturn

from pypto_actors.coordinator import Coordinator, Settings
from pypto_actors.deadlines import NEVER
from pypto_actors.device import DeviceActor
from pypto_actors.errors import InternalError, shown
from pypto_actors.events import COORDINATOR, HOST_ACTOR, Changed, Event, Received, Routed, Started, TraceHook
from pypto_actors.executor import Answer, Executor, clock_of
from pypto_actors.host import HostActor
from pypto_actors.lifecycle import Failure, Record, RunState
from pypto_actors.mailbox import Admission, Envelope
from pypto_actors.messages import Call, Completed, Died, Submit, Tick, ToCoordinator, ToDevice
from pypto_actors.router import ALL
from pypto_actors.tensors import Tensors
from pypto_actors.waiter import Waiter

TURN = 64  # messages to devices in one turn of the loop
EARLY = 1e-3  # seconds before its time at which a timer may be called
MOST_UNASKED = 1000  # failures kept for the log
logger = logging.getLogger("pypto_actors")


class System:
    """The coordinator, its devices and the host actor, and the mail between them."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: Settings, max_queued: int, tensors: Tensors, trace: TraceHook | None
    ) -> None:
        self.loop = loop
        self.clock = clock_of(loop)
        self.tensors = tensors
        self.restarter: Callable[[int], None] | None = None
        self.trace = None if trace is None else self._hook
        self._user_hook = trace
        self.admission = Admission(max_queued)
        self.left = self.admission.give  # a dispatch has left the queue (called by the coordinator)
        self.coordinator = Coordinator(settings, self)
        self.router = self.coordinator.router
        if trace is not None:
            self.coordinator.trace()
        self.devices: list[DeviceActor] = []
        self.host: HostActor | None = None
        self.mail: deque[Envelope] = deque()
        self.crashed: BaseException | None = None
        self._busy: deque[DeviceActor] = deque()  # devices with mail
        self._later: deque[Callable[[], None]] = deque()
        self._calls: deque[Call] = deque()  # the host actor's mail
        self._scheduled = False
        self._waking = False  # are tasks going on, and does a turn follow when they have?
        self._whole = trace is not None  # must each turn be a whole one, for the trace or after a crash?
        self.eager = False  # do kernels run elsewhere, so that a turn in the caller's frame is short?
        self.wakeups: list[Waiter] = []  # resolved, and not yet told
        # a loop of our tests chooses itself which task goes on
        self._direct = not hasattr(loop, "virtual_time")
        self._timed = self.coordinator.deadlines.heap
        self._hooked = False  # is the user's trace hook at work?
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._unasked: dict[int, Record] = {}
        self._unasked_more = 0
        if trace is not None:  # a hook that raises here lets the start fail
            trace(Started(loop.time(), 0, settings))

    def __repr__(self) -> str:
        return f"<System of {self.coordinator!r}, {len(self.mail)} messages waiting>"

    def connect(self, executors: Sequence[Executor], host: HostActor) -> None:
        """The devices have started."""
        self.devices = [DeviceActor(rank, executor) for rank, executor in enumerate(executors)]
        self.host = host

    def replace(self, rank: int, executor: Executor) -> None:
        """A device has started again; its new actor has an empty mailbox."""
        self.devices[rank] = DeviceActor(rank, executor)
        assert self.host is not None
        self.host.executors[rank] = executor

    def _hook(self, event: Event) -> None:
        """Show an event to the user's hook, which may ask the worker something, but cannot make the coordinator go on meanwhile.

        A hook that raises sees nothing more: what was accepted must go on.
        """
        hook = self._user_hook
        if hook is None:
            return
        before, self._hooked = self._hooked, True
        try:
            hook(event)
        except (KeyboardInterrupt, SystemExit) as error:  # goes on outside of what is being decided
            self._user_hook = None
            self.loop.call_soon(_raise, error)
        except BaseException:
            self._user_hook = None
            logger.exception("the trace hook %r raised at %r; it is called no more", hook, event)
        finally:
            self._hooked = before

    # ------------------------------------------------------------------------------------------ mail

    def tell(self, message: ToCoordinator, record: Record | None = None) -> None:
        """Put a message into the coordinator's mailbox; it works in the next turn of the loop."""
        self.mail.append((message, record))
        if self.trace is not None:
            self.trace(Received(self.loop.time(), getattr(message, "run", 0), COORDINATOR, message))
        if not self._scheduled:
            self._scheduled = True
            if not self._waking:
                self.loop.call_soon(self.turn)

    def tell_now(self, message: Submit, record: Record) -> None:
        """Put a message into the mailbox and let the actors work at once: what waits for a kernel elsewhere has a way to go."""
        if self._scheduled or not self.eager:
            self.tell(message, record)
        elif self._whole or self.mail or self._timed or not message.plain:
            self.post(message, record)
            self.work()
            if self.wakeups:
                self.loop.call_soon(self._wake)
        else:
            self.mail.append((message, record))
            self._take_one()
            if self.wakeups:
                self.loop.call_soon(self._wake)

    def answered(self, answer: Answer) -> None:
        """A device that works elsewhere has answered, and nothing else has come: a turn for one answer."""
        router = self.router
        if self._whole or self.mail or type(answer) is not Completed:
            self.post(answer)
            self.turn()
            return
        try:
            self.coordinator.completed(answer)
        except Exception as error:
            self._crash(error)
        if router.fresh or router.dirty or self.mail or self._busy or self._calls or self._later:
            self.turn()
        elif self.wakeups:
            self._wake()

    def post(self, message: ToCoordinator, record: Record | None = None) -> None:
        """The same, where a turn is under way or follows."""
        self.mail.append((message, record))
        if self.trace is not None:
            self.trace(Received(self.loop.time(), getattr(message, "run", 0), COORDINATOR, message))

    def send(self, device: int, message: ToDevice) -> None:
        """Put a message into a device's mailbox (called by the coordinator)."""
        actor = self.devices[device]
        mail = actor.mail
        if not mail:
            self._busy.append(actor)
            if mail is None:
                mail = actor.mail = deque()
        mail.append(message)
        if self.trace is not None:
            self.trace(Received(self.loop.time(), getattr(message, "run", 0), device, message))

    def call(self, message: Call) -> None:
        """Put a message into the host actor's mailbox (called by the coordinator)."""
        self._calls.append(message)
        if self.trace is not None:
            self.trace(Received(self.loop.time(), message.run, HOST_ACTOR, message))

    def changed(self, record: Record, before: RunState) -> None:
        """A record has changed its state (called by the coordinator while tracing)."""
        if self.trace is not None:
            self.trace(Changed(self.loop.time(), record.id, before, record.state))

    def failed(self, record: Record) -> None:
        """A dispatch has failed; whoever asks before the worker closes is not told by the log (called by the coordinator)."""
        if len(self._unasked) >= MOST_UNASKED:
            self._unasked = {run: known for run, known in self._unasked.items() if not known.asked}
        if len(self._unasked) < MOST_UNASKED:
            self._unasked[record.id] = record
        else:
            self._unasked_more += 1

    def lost(self, device: int, allocations: Sequence[int]) -> None:
        """A device has died (called by the coordinator)."""
        self.tensors.lose(allocations)

    def restart(self, device: int) -> None:
        """Start a device again (called by the coordinator)."""
        assert self.restarter is not None
        self.restarter(device)

    def died(self, device: int, reason: str) -> None:
        """A device has died (called by its executor, on the loop)."""
        self.tell(Died(device, reason, self.clock()))

    def later(self, work: Callable[[], None]) -> None:
        """Do `work` in this turn, when what is being done is done (called by executors)."""
        self._later.append(work)

    # ------------------------------------------------------------------------------------------ turns

    def flush(self) -> None:
        """Let the coordinator take the mail that has come, now, so that what it knows is up to date. It hands nothing over."""
        if self.mail and not self._hooked and not self.router.asking:
            if self.crashed is None:
                self._take_mail()
            else:
                self._fail_mail()
            self._schedule()

    def waiter(self) -> Waiter | asyncio.Future[None]:
        """What the task of a caller is to await."""
        return Waiter(self.loop, self.wakeups) if self._direct else self.loop.create_future()

    def turn(self) -> None:
        """Work until nothing is left to do, or for as long as it is fair to others. A callback of the loop: no task is running."""
        mail = self.mail
        if len(mail) == 1 and not self._whole and not self._timed and type(message := mail[0][0]) is Submit and message.plain:
            self._take_one()
        else:
            self.work()
        if self.wakeups:
            self._wake()

    def _take_one(self) -> None:
        """What `work` does, where a dispatch of the simplest kind is all that has come: it and its answer make most turns."""
        self._scheduled = False
        coordinator, router, mail, busy = self.coordinator, self.router, self.mail, self._busy
        message, record = mail.popleft()
        try:
            coordinator.submit(message, record)  # type: ignore[arg-type]
            fresh = router.fresh
            if len(fresh) == 1 and not router.goes_alone(first := fresh.pop()):
                fresh.append(first)
            if busy:
                waiting = busy[0].mail
                receive = busy[0].receive
                while waiting:
                    receive(waiting.popleft())
                busy.popleft()
            if mail and type(answer := mail[0][0]) is Completed:
                mail.popleft()
                coordinator.completed(answer)
        except Exception as error:
            self._crash(error, record)
        except BaseException:  # the user's, out of a kernel
            self._schedule()
            raise
        if mail or busy or router.fresh or router.dirty or self._later or self._calls:
            self.work()

    def _wake(self) -> None:
        """Let the tasks go on whose dispatches have ended. A callback of the loop: no task is running.

        What they submit goes on its way to a kernel elsewhere at once, not when the loop has looked for input.
        """
        if asyncio.current_task(self.loop) is not None:  # somebody's, who has let a device die, and what that had answered is heard now
            self.loop.call_soon(self._wake)
            return
        wakeups = self.wakeups
        waking = self._waking = self.eager and not self._scheduled
        try:
            while wakeups:
                wakeups.pop(0).wake()
        except BaseException:  # the user has interrupted one of them
            self.loop.call_soon(self._wake)
            if waking and self._scheduled:
                self.loop.call_soon(self.turn)
            raise
        finally:
            self._waking = False
        if waking and self._scheduled:
            self.work()
            if wakeups:
                self.loop.call_soon(self._wake)

    def work(self) -> None:
        """A turn in the frame of whoever calls; tasks are not woken before the next callback of the loop."""
        self._scheduled = False
        if self.crashed is not None:
            self._fail_mail()
            return
        coordinator, router, mail, busy = self.coordinator, self.router, self.mail, self._busy
        calls, later, timed = self._calls, self._later, self._timed
        submit, completed = coordinator.submit, coordinator.completed
        budget = TURN
        record: Record | None = None  # of the message in hand
        try:
            while True:
                while mail:
                    message, record = mail.popleft()
                    # the two that every dispatch has; in a `match` every class that does not fit costs as much as a call
                    kind = type(message)
                    if kind is Completed:
                        completed(message)  # type: ignore[arg-type]
                    elif kind is Submit:
                        submit(message, record)  # type: ignore[arg-type]
                    else:
                        coordinator.receive(message, record)
                if timed and self._tick_if_due():
                    continue
                if router.fresh or router.dirty:
                    if self.trace is not None:
                        self.trace(Routed(self.loop.time(), 0))
                    router.route(coordinator.now)
                if calls:
                    self._give_calls()
                while later:
                    later.popleft()()
                while busy:
                    actor = busy[0]
                    waiting, receive = actor.mail, actor.receive
                    while waiting:
                        budget -= 1
                        receive(waiting.popleft())
                    busy.popleft()
                    while later:
                        later.popleft()()
                if not mail or budget <= 0:
                    break
            if timed:
                self._arm(coordinator.deadlines.next())
        except Exception as error:
            self._crash(error, record)
        finally:
            if mail or busy or later or calls:
                self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            if not self._waking:
                self.loop.call_soon(self.turn)

    def _tick_if_due(self) -> bool:
        """Tell the coordinator the time before it hands over anything whose deadline has passed."""
        now = self.loop.time()
        if self.coordinator.deadlines.next() > now:
            return False
        self.post(Tick(now))
        return True

    def _give_calls(self) -> None:
        assert self.host is not None
        while self._calls:
            self.host.receive(self._calls.popleft())

    def _take_mail(self) -> None:
        record: Record | None = None
        try:
            while self.mail:
                message, record = self.mail.popleft()
                self.coordinator.receive(message, record)
        except Exception as error:
            self._crash(error, record)

    def _arm(self, deadline: float) -> None:
        if deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self.loop.call_at(deadline, self._tick) if deadline != NEVER else None

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        # asyncio may call a little early: what it takes for reached has been reached
        now, due = self.loop.time(), self.coordinator.deadlines.next()
        self.post(Tick(due if now < due < now + EARLY else now))
        self.turn()

    # ------------------------------------------------------------------------------------------ ends

    def _crash(self, error: Exception, in_hand: Record | None = None) -> None:
        """A fault of our own: nothing can be trusted any more, but everybody gets an answer."""
        self.crashed = error
        self._whole = True
        logger.critical("the coordinator of a worker failed; the worker can only be closed", exc_info=error)
        watches = [record for record, _ in self.coordinator.operations.watches]
        self._fail_all([*([in_hand] if in_hand is not None else []), *self.coordinator.records.values(), *watches])
        self._fail_mail()
        self.admission.room = ALL  # nobody waits for room any more: later calls are let in, and fail
        while self.admission.waiting:
            self.admission.waiting.popleft().refuse(InternalError(f"the coordinator failed: {shown(error)}; please report it"))

    def _fail_mail(self) -> None:
        self._fail_all([record for _, record in self.mail if record is not None])
        self.mail.clear()

    def _fail_all(self, records: list[Record]) -> None:
        error = self.crashed
        for record in records:
            if not record.ended:
                record.state = RunState.FAILED
                record.failure = Failure(InternalError, f"the coordinator failed: {shown(error)}; please report it", {}, error)
                record.wake()

    def stop(self) -> None:
        """No more timers; says once what failed unheard."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unheard = [record for record in self._unasked.values() if not record.asked and record.failure is not None]
        self._unasked.clear()
        for record in unheard:
            assert record.failure is not None
            logger.error(
                "nobody asked for a failure: %s: %s", record.failure.kind.__name__, record.failure.text, exc_info=record.failure.cause
            )
        if self._unasked_more:
            logger.error("%d further dispatches failed, and perhaps nobody asked for them", self._unasked_more)


def _raise(error: BaseException) -> NoReturn:
    raise error
