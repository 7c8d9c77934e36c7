"""The parent's side of a device that is a Ray actor: it makes calls out of dispatches, one a segment, and hears what they gave.

A part of one segment is sent at once, behind those before it. A part of several has the device for itself: each segment goes when the
one before it has been answered and, at a meeting, when all have come. So no call ever waits inside of an actor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct

from pypto_actors.backends.copy_engine import CopyEngine
from pypto_actors.backends.local import Clock, LocalExecutor
from pypto_actors.backends.memory import Interconnect, sliced
from pypto_actors.backends.ray_caller import Caller, Sending
from pypto_actors.backends.ray_crossing import Crossing, Fetched
from pypto_actors.backends.ray_ledger import Ledger
from pypto_actors.backends.ray_link import Inbox, Link
from pypto_actors.backends.ray_memory import RayMemory
from pypto_actors.backends.ray_segments import Segment
from pypto_actors.backends.rendezvous import Deserted
from pypto_actors.errors import DeviceFailedError, InternalError
from pypto_actors.executor import Answer, Desk, plain, read_only
from pypto_actors.messages import Commit, Completed, Dispatch, Failed, Piece, Reached, Release
from pypto_actors.plan import Part, Plan, Slot, Source
from pypto_actors.values import DeviceTensor

TIDY_AFTER = 0.05  # seconds after which a device is told of memory that it has to give back, if no call has taken that along
TIDY_BYTES = 1 << 24  # bytes of which it is told at once


class Hand(Struct, eq=False):
    """A part of several segments, which has the device for itself."""

    message: Dispatch
    part: Part
    segments: Sequence[Segment]
    at: int = 0  # the segment that is next, or under way
    started: float = -1.0


class RayExecutor(LocalExecutor):
    """One device on a cluster."""

    __slots__ = (
        "_caller",
        "_copies",
        "_crossing",
        "_hand",
        "_held",
        "_inbox",
        "_packing",
        "_peers",
        "_tidy",
        "_why",
        "closing",
        "ledger",
        "link",
        "memory",
        "started",
    )

    def __init__(
        self,
        rank: int,
        interconnect: Interconnect,
        desk: Desk,
        clock: Clock,
        inbox: Inbox,
        crossing: Crossing,
        peers: dict[int, RayMemory],
    ) -> None:
        super().__init__(rank, interconnect, desk, clock)
        self._inbox = inbox
        self._crossing = crossing
        self._peers = peers
        self.ledger = Ledger(rank)
        self.link = Link(rank, inbox, self._ended)
        self._copies = CopyEngine(rank, inbox.loop, desk.turn)
        self.memory = RayMemory(rank, self.link, self.ledger, clock, desk.post, self._copies.do, peers)
        self._caller = Caller(rank, self.link, self.ledger, self.memory, clock, self._copies.do, peers)
        self._held: deque[Dispatch] = deque()  # not sent yet, in order
        self._packing = False  # is one being packed, which those that are held must not overtake?
        self._hand: Hand | None = None
        self._tidy: asyncio.TimerHandle | None = None
        self._why: str | None = None
        self.started = False
        self.closing = False

    def __repr__(self) -> str:
        return f"<RayExecutor of device {self._rank}, process {self.link.pid}: {self.link.owed} answers outstanding>"

    # ------------------------------------------------------------------------------------------ its life

    def kill(self, reason: str) -> None:
        """Die, now."""
        if not self.dead:
            self._why = self._why or reason
            self.link.kill()
            self.link.lost(reason)

    def begin(self) -> None:
        """It has started: others may reach its memory."""
        self.started = True
        self._peers[self._rank] = self.memory

    def end(self) -> None:
        """No more work: it is idle."""
        self.closing = True
        if self._tidy is not None:
            self._tidy.cancel()
        self.link.kill()

    def join(self) -> None:
        """Let the thread end; it is idle."""
        self._copies.join()

    def _ended(self, reason: str) -> None:
        """The actor has ended, wanted or not."""
        if not self.started or self.closing:
            self.dead = self.memory.dead = True
        elif self._copies.busy:  # nothing is to write host arrays when their dispatch has failed
            self._copies.do(lambda: None, lambda _: self._die(reason))
        else:
            self._die(reason)

    def _die(self, reason: str) -> None:
        if self.dead:
            return
        why = self._why or reason
        self.memory.dead = True
        self.link.kill()  # what Ray cannot reach any more may live on
        super().kill(why)
        now = self._clock()
        messages = ([self._hand.message] if self._hand is not None else []) + list(self._held)
        self._hand = None
        self._held.clear()
        for message in messages:
            self.over(message, Failed(message.run, message.part, self._rank, -1, RuntimeError(why), now, now))
        if self._tidy is not None:
            self._tidy.cancel()
        self._copies.end()

    # ------------------------------------------------------------------------------------------ dispatches

    def dispatch(self, message: Dispatch) -> None:
        if not self._held and self._hand is None and not self._packing:
            call = self.ledger.calls.find(message.args, message.plan)
            if call is not None:
                self._caller.run(message, call.number, self._inbox_answer)
                return
        self._held.append(message)
        if len(self._held) == 1:
            self._advance()

    def _advance(self) -> None:
        """Send what is held, until one must wait."""
        while self._held and self._hand is None and not self._packing and not self.dead:
            message = self._held[0]
            try:
                if not self._begin(message):
                    return
            except Exception as error:
                if self._held and self._held[0] is message:
                    self._held.popleft()
                self.unable(message, error)

    def _begin(self, message: Dispatch) -> bool:
        """Send the first of those held; `False`: not now."""
        part = message.plan.parts[message.part]
        segments = self.ledger.segments(part)
        if len(segments) > 1 or segments[0].sync is not None:
            self._held.popleft()
            self._hand = Hand(message, part, segments)
            self._go_on(self._hand)
            return True
        sending = self._caller.prepare(message, segments[0], {}, False)
        if sending is None:
            return False
        self._held.popleft()
        self._packing = not self._caller.pack(sending, lambda: self._packed(sending))
        if not self._packing:
            self._caller.send(sending, self._single_done)
        return True

    def _packed(self, sending: Sending) -> None:
        self._packing = False
        if not self.dead:
            self._caller.send(sending, self._single_done)
            self._advance()

    def _inbox_answer(self, answer: Answer) -> Answer | None:
        return None if self.dead else answer

    def _single_done(self, answer: Answer) -> Answer | None:
        if self.dead:
            return None
        if self._held:
            self._advance()
        self._tidy_later()
        return answer

    # ------------------------------------------------------------------------------------------ parts of several segments

    def _go_on(self, hand: Hand) -> None:
        """Send the next segment, or go past it if it has no steps."""
        if not hand.segments[hand.at].steps:
            self._done(hand)
            return
        self._crossing.alone(partial(self._ask, hand, False))

    def _ask(self, hand: Hand, in_order: bool, fetched: Fetched, taken: Callable[[], None]) -> Callable[[], None]:
        """Ask for what the next segment needs; what comes back sends it."""
        try:
            sending = self._caller.prepare(hand.message, hand.segments[hand.at], fetched, in_order)
            if sending is None:
                raise InternalError(f"{hand.message!r} waits for bytes that are in flight")
            if self._caller.pack(sending, taken):
                taken()
        except Exception as error:
            now = self._clock()
            failure = Failed(hand.message.run, hand.part.index, self._rank, -1, error, now, now, isinstance(error, DeviceFailedError))
            taken()
            return lambda: self._end(hand, failure)
        return lambda: self._submit(hand, sending)

    def _submit(self, hand: Hand, sending: Sending) -> None:
        if self._hand is hand:
            self._caller.send(sending, lambda answer: self._segment_done(hand, answer))

    def _segment_done(self, hand: Hand, answer: Answer) -> None:
        if self._hand is not hand:
            return
        if isinstance(answer, Reached):
            raise InternalError(f"{answer!r} of a device that knows no events")
        if hand.started < 0:
            hand.started = answer.started
        if isinstance(answer, Failed):
            self._end(hand, answer)
        else:
            self._done(hand)

    def _done(self, hand: Hand) -> None:
        """The steps of a segment are done: now its meeting, if it has one."""
        if hand.started < 0:
            hand.started = self._clock()
        sync = hand.segments[hand.at].sync
        if sync is None:
            self._past(hand)
            return
        key = (hand.message.run, hand.part.wave)
        try:
            met = self._interconnect.rendezvous.come(key, sync.number, sync.members, lambda met: self._met(hand, met))
        except Deserted:
            self._met(hand, False)
        else:
            if met:
                self._met(hand, True)

    def _met(self, hand: Hand, met: bool) -> None:
        if self._hand is not hand:
            return
        if met:
            self._past(hand)
        else:
            now = self._clock()
            number = hand.segments[hand.at].stop
            self._end(hand, Failed(hand.message.run, hand.part.index, self._rank, number, Deserted(), hand.started, now, True))

    def _past(self, hand: Hand) -> None:
        """A segment is over."""
        segment = hand.segments[hand.at]
        if segment.event >= 0:
            self._desk.post(Reached(hand.message.run, hand.part.index, segment.event, self._clock()))
        if segment.last:
            self._end(hand, Completed(hand.message.run, hand.part.index, self._rank, hand.started, self._clock()))
            return
        hand.at += 1
        if segment.sync is not None and hand.segments[hand.at].steps:
            self._crossing.add(partial(self._ask, hand, True))
        else:
            self._go_on(hand)

    def _end(self, hand: Hand, answer: Answer) -> None:
        if self._hand is not hand:
            return
        self._hand = None
        self._desk.post(self.over(hand.message, answer))
        self._advance()
        self._tidy_later()

    # ------------------------------------------------------------------------------------------ memory

    def commit(self, message: Commit) -> None:
        self.memory.commit(message)

    def copy(self, message: Piece) -> None:
        self.memory.copy(message)

    def release(self, message: Release) -> None:
        self.memory.release(message.allocations)
        self._tidy_later()

    def fetch(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> asyncio.Future[None] | None:
        """Fetch what `window` gives; `None`: it is at hand."""
        value = self._seen(slot, args, scratch, plan)
        return self.memory.look(value) if type(value) is DeviceTensor else None

    def window(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> Any:
        value = self._seen(slot, args, scratch, plan)
        if type(value) is DeviceTensor:
            return self.memory.window(value, slot.writable)
        if isinstance(value, np.ndarray):
            array = sliced(plain(value), slot.path)
            return array if slot.writable else read_only(array)
        return value

    def _seen(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> Any:
        value = self.ledger.slot(slot, args, scratch, plan)
        if slot.source is Source.SCRATCH:
            self.memory.scratch(value.allocation, plan.scratch[slot.index].nbytes)
        return value

    def _tidy_later(self) -> None:
        """Have the device told of what it has to give back, soon or at once, if there is any."""
        if self._caller.untidy > TIDY_BYTES:
            self._tidy_now()
        elif self._caller.untidy and self._tidy is None:
            self._tidy = self._inbox.loop.call_later(TIDY_AFTER, self._tidy_now)

    def _tidy_now(self) -> None:
        if self._tidy is not None:
            self._tidy.cancel()
            self._tidy = None
        if not self.dead and not self.closing:
            self._caller.tidy()
