"""The parent's side of a device that is a process: it resolves what a dispatch uses to places in shared memory, stages host arrays,
and hears the answers. Memory is committed, copied and released here, in the parent; no kernel is in the way of that."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import Struct

from pypto_actors.backends.copy_engine import CopyEngine
from pypto_actors.backends.known_calls import Known
from pypto_actors.backends.local import Clock, LocalExecutor, failed, size_of
from pypto_actors.backends.process_ledger import Ledger
from pypto_actors.backends.process_link import Link
from pypto_actors.backends.process_sharing import Sharing
from pypto_actors.backends.process_staging import Array, HostSlot, Stage, Staging, copy_all, host_slots, size_of_copies
from pypto_actors.backends.rendezvous import Deserted, Key
from pypto_actors.backends.shared_memory import SharedInterconnect
from pypto_actors.backends.wire import Came, Do, Drop, End, Fill, Go, Ready, Run
from pypto_actors.executor import Answer, Desk
from pypto_actors.messages import Completed, Dispatch, Failed, Piece, Reached, Read, Release
from pypto_actors.plan import Part, Plan, Slot, Source, Sync
from pypto_actors.values import DeviceTensor

LARGE_COPY = 1 << 20  # bytes; below, a copy holds the loop up for less than its way to a thread and back
LOOK = 0.4  # seconds between looks at a process that owes an answer: is it stopped?


class Hand(Struct, eq=False):
    """A part that the process has in hand and that is more than a call: it stages host arrays, meets others, or is awaited within."""

    message: Dispatch
    part: Part
    stage: Stage | None
    done: int = 0  # steps whose results have been copied to the host
    copying: int = 0  # copies to the host that a thread has in hand
    error: Exception | None = None  # why a copy to the host failed: the array cannot be written any more


class Wave(Struct, eq=False):
    """The parts of a dispatch that meet: they share a stage, which lasts until all of them have ended."""

    stage: Stage | None = None
    left: int = 0  # parts that have ended


class ProcessExecutor(LocalExecutor):
    """One device in a process of its own."""

    __slots__ = (
        "_answered",
        "_calls",
        "_copies",
        "_ending",
        "_flushing",
        "_hands",
        "_held",
        "_ledger",
        "_link",
        "_look_again",
        "_looks",
        "_loop",
        "_out",
        "_owed",
        "_shared",
        "_sharing",
        "_staging",
        "_staging_in",
        "_waves",
        "_why",
        "closing",
        "lost",
        "ready",
        "started",
    )

    def __init__(
        self,
        rank: int,
        interconnect: SharedInterconnect,
        desk: Desk,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        waves: dict[Key, Wave],
        sharing: Sharing,
        lost: Callable[[list[int]], None],
    ) -> None:
        super().__init__(rank, interconnect, desk, clock)
        self._shared = interconnect
        self._loop = loop
        self._waves = waves  # of all devices
        self._sharing = sharing  # of all devices
        self.lost = lost  # called with the slabs that have gone with the device
        self._ledger = Ledger(interconnect)
        self._calls = self._ledger.calls
        self._staging = Staging(interconnect)
        self._link = Link(loop, rank, self._received, self._ended)
        self._out: list[Any] = []
        self._flushing = False  # is a flush to come?
        self._owed = 0  # answers of the process
        self._answered = 0  # those that have come
        self._ending = False  # has the process ended, and nothing is to begin any more?
        self._hands: dict[tuple[int, int], Hand] = {}
        self._held: deque[Dispatch] = deque()  # not sent yet, in order
        self._staging_in = False  # is the first of them being copied in, or what it writes being moved?
        self._copies = CopyEngine(rank, loop, self._copied_some)
        self._look_again: asyncio.TimerHandle | None = None
        self._looks: int = -1  # how often it was seen standing still; -1: nobody looks
        self._why: str | None = None
        self.started = False
        self.closing = False
        self.ready: asyncio.Future[None] = loop.create_future()

    # ------------------------------------------------------------------------------------------ its life

    @property
    def pid(self) -> int:
        """The process, for those who watch it."""
        return self._link.pid

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done when nothing is left of the process."""
        return self._link.gone

    @property
    def owes(self) -> bool:
        """Is an answer outstanding?"""
        return self._owed > 0

    def spawn(self, environment: Mapping[str, str]) -> None:
        """Start the process; `ready` says when it has started, or why not."""
        self._link.spawn(environment)

    def kill(self, reason: str) -> None:
        """Die, now."""
        self._why = self._why or reason
        self._link.kill_now()

    def end(self) -> None:
        """No more work. The process ends after what it has."""
        self.closing = True
        self._out.append(End())
        self._flush()

    def end_hard(self) -> None:
        """Do not wait for the end of what it has."""
        self.closing = True
        self._link.kill()

    def join(self) -> None:
        """Let the thread of copies end; it is idle. Nobody looks any more."""
        self._copies.join()
        if self._look_again is not None:
            self._look_again.cancel()

    def give_up(self, why: str) -> None:
        """It does not answer: it is to die."""
        self._why = self._why or why
        self._link.kill()

    def moved(self, allocations: Sequence[int]) -> None:
        """Allocations have got another place."""
        calls = self._calls.released(allocations)
        if calls:
            self._put(Drop(calls))
        if self._views is not None:
            self._views.forget(allocations)

    def drop_slabs(self, slabs: list[int]) -> None:
        """Slabs of another device have gone."""
        mine = self._ledger.unmap(slabs)
        if mine:
            self._put(Drop([], mine))

    def mark(self) -> tuple[int, int]:
        """What is under way now: its last answer, and its last copy."""
        return self._answered + self._owed, self._copies.given

    def past(self, mark: tuple[int, int]) -> bool:
        """Has all ended that was under way then? The copies are in order, and so are the answers, which the dead do not owe."""
        answers, copies = mark
        return self._copies.over >= copies and (self.dead or self._answered >= answers)

    def _copied_some(self) -> None:
        self._desk.turn()
        if self._sharing.former:
            self._sharing.settle()

    def _ended(self, reason: str) -> None:
        """The process has ended, wanted or not."""
        self._ending = True
        if not self.started:
            self.dead = True
            if not self.ready.done():
                self.ready.set_exception(RuntimeError(f"device {self._rank} did not start: {self._why or reason}"))
        elif self._copies.busy:  # nothing is to write host arrays when their dispatch has failed
            self._copies.do(lambda: None, lambda _: self._die(reason))
        else:
            self._die(reason)

    def _die(self, reason: str) -> None:
        if self.dead:
            return
        why = self._why or reason
        if self.closing:
            self.dead = True
            return
        slabs = [slab.number for slab in self._shared.heap(self._rank).slabs]
        super().kill(why)
        if self._sharing.former:
            self._sharing.settle()
        self.lost([slab for slab in slabs if slab not in self._shared.slabs])
        now = self._clock()
        hands, self._hands = self._hands, {}
        for hand in hands.values():
            self._leave(hand)
        for message in [hand.message for hand in hands.values()] + list(self._held):
            self.over(message, failed(message, self._rank, why, now))
        self._held.clear()
        self._copies.end()

    def _look(self) -> None:
        """A process that owes an answer and stands still at two looks in a row is taken for dead. Idle, nobody looks."""
        if self._owed == 0 or self.dead:
            self._looks = -1
            return
        self._looks = self._looks + 1 if self._link.stopped() else 0
        if self._looks >= 2:
            self.give_up("its process stopped answering: it stands still")
            return
        self._look_again = self._loop.call_later(LOOK, self._look)

    # ------------------------------------------------------------------------------------------ to the process

    def dispatch(self, message: Dispatch) -> None:
        if not self._held:
            call = self._calls.find(message.args, message.plan)
            if call is not None:
                self._send(Run(message.run, call.number))
                return
        self._held.append(message)
        if len(self._held) == 1:
            self._advance()

    def _send(self, message: Run | Fill | Do) -> None:
        """One that is answered. The first goes at once, those behind it together."""
        self._out.append(message)
        self._owed += 1
        if self._owed == 1:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        if self._looks < 0:
            self._looks = 0
            self._look_again = self._loop.call_later(LOOK, self._look)

    def _put(self, message: Any) -> None:
        """One that is not answered, and goes now."""
        self._out.append(message)
        self._flush()

    def _flush(self) -> None:
        self._flushing = False
        out = self._out
        if out:
            self._out = []
            self._link.send(out)

    def _advance(self) -> None:
        """Send what is held, until one must wait."""
        while self._held and not self._staging_in and not self.dead and not self._ending:
            message = self._held[0]
            try:
                if not self._begin(message):
                    return
            except Exception as error:
                self._held.popleft()
                self.unable(message, error)

    def _begin(self, message: Dispatch) -> bool:
        """Send the first of those held, or see to it that it can be sent; `False`: not now."""
        plan = message.plan
        if not self._owns(message):
            return False
        part = plan.parts[message.part]
        number = self._ledger.part(plan, part, self._out)
        known = self._ledger.bound(message, part, number, self._link, self._out)
        hosts = host_slots(message.args, part, enumerate(part.slots) if known is None else known.rest)
        if not hosts:
            self._hand_over(message, part, number, known, None)
            return True
        stage = self._stage(message, part, hosts)
        if stage is None:
            return False
        if stage.ready:
            self._hand_over(message, part, number, known, stage)
        else:
            self._staging_in = True
            stage.waiting.append(lambda: self._staged(message, part, number, known, stage))
        return True

    def _owns(self, message: Dispatch) -> bool:
        """Does what a dispatch writes share its memory with nothing? Otherwise the dispatch goes on when that is so."""
        written = self._ledger.written(message)
        if not written:
            return True
        move = self._sharing.move(written, self._copies)
        self._shared.write(written)
        if move is None:
            return True
        self._staging_in = True
        move.waiting.append(self._moved)
        return False

    def _moved(self) -> None:
        self._staging_in = False
        self._advance()

    def _stage(self, message: Dispatch, part: Part, hosts: list[HostSlot]) -> Stage | None:
        wave = self._waves.setdefault((message.run, part.wave), Wave()) if part.meeting else None
        stage = None if wave is None else wave.stage
        if stage is None:
            if wave is not None:
                parts = [other for other in message.plan.parts if other.meeting and other.wave == part.wave]
                hosts = [host for other in parts for host in host_slots(message.args, other, enumerate(other.slots))]
            stage = self._staging.stage(message, hosts)
            if stage is None:
                return None
            if wave is not None:
                wave.stage = stage
            if size_of_copies(stage.fill) <= LARGE_COPY:
                copy_all(stage.fill)
                stage.filled()
            else:
                self._copies.do(lambda: copy_all(stage.fill), lambda result: self._filled(stage, result))
        return stage

    def _filled(self, stage: Stage, result: Any) -> None:
        if isinstance(result, Exception):
            self.give_up(f"host arrays could not be copied to it: {result!r}")
        else:
            stage.filled()

    def _staged(self, message: Dispatch, part: Part, number: int, known: Known | None, stage: Stage) -> None:
        self._staging_in = False
        if not self.dead and self._held and self._held[0] is message:
            self._hand_over(message, part, number, known, stage)
            self._advance()
        elif not part.meeting:
            self._staging.leave(stage)

    def _hand_over(self, message: Dispatch, part: Part, number: int, known: Known | None, stage: Stage | None) -> None:
        if known is not None and self._calls.find(known.of, known.plan) is not known:
            known = None  # something that it names has moved meanwhile
        slots = enumerate(part.slots) if known is None else known.rest
        values = self._ledger.values(message, part, slots, stage, self._link, self._out)
        self._held.popleft()
        if (stage is not None and stage.regions) or not part.plain:
            self._hands[message.run, message.part] = Hand(message, part, stage)
        if known is not None:
            self._send(Fill(message.run, known.number, values))
        elif stage is None and part.plain and self._ledger.keeps(message, part):
            self._send(Run(message.run, self._ledger.keep(message, number, values, self._out)))
        else:
            self._send(Do(message.run, number, values))

    # ------------------------------------------------------------------------------------------ from the process

    def _received(self, answers: list[Any]) -> None:
        if len(answers) == 1 and not self._hands:
            answer = answers[0]
            if type(answer) is Completed and not self.dead:
                self._owed -= 1
                self._answered += 1
                self._desk.answered(answer)
                if self._sharing.former:
                    self._sharing.settle()
                return
        hands, post = self._hands, self._desk.post
        for answer in answers:
            if self.dead:
                return
            if type(answer) is Completed and not hands:
                self._owed -= 1
                self._answered += 1
                post(answer)
            else:
                self._take(answer)
        if self.started:
            self._desk.turn()
        if self._sharing.former:
            self._sharing.settle()

    def _take(self, answer: Any) -> None:
        kind = type(answer)
        if kind is Ready:
            if not self.ready.done():
                self.ready.set_result(None)
            return
        if kind is Failed and answer.run < 0:
            if not self.ready.done():
                self.ready.set_exception(answer.error)
            return
        hand = self._hands.get((answer.run, answer.part)) if self._hands else None
        if kind is Came:
            assert hand is not None
            self._copy_back(hand, answer.step, lambda: self._come(hand, answer.step))
        elif kind is Reached:
            assert hand is not None
            self._copy_back(hand, hand.part.events[answer.event], lambda: self._desk.post(answer))
        else:
            self._owed -= 1
            self._answered += 1
            if hand is None:
                self._desk.post(answer)
            else:
                done = answer.step + 1 if kind is Failed else len(hand.part.steps)
                self._copy_back(hand, done, lambda: self._finish(hand, answer))

    def _copy_back(self, hand: Hand, done: int, then: Callable[[], None]) -> None:
        """Bring to the host what the part's steps have written up to `done`; then go on."""
        copies = hand.stage.back(hand.part, hand.done, done) if hand.stage is not None else []
        hand.done = max(hand.done, done)
        if not hand.copying and size_of_copies(copies) <= LARGE_COPY:
            _bring(hand, copies)
            then()
            return
        hand.copying += 1

        def copied(failure: Exception | None) -> None:
            hand.copying -= 1
            hand.error = hand.error or failure
            if not self.dead:
                then()

        self._copies.do(lambda: _bring(hand, copies), copied)

    def _come(self, hand: Hand, step: int) -> None:
        """The part has come to a meeting."""
        sync = hand.part.steps[step].function
        assert isinstance(sync, Sync)
        try:
            if self._interconnect.rendezvous.come((hand.message.run, hand.part.wave), sync.number, sync.members, self._go):
                self._go(True)
        except Deserted:
            self._go(False)

    def _go(self, met: bool) -> None:
        if not self.dead:
            self._put(Go(met))

    def _finish(self, hand: Hand, answer: Answer) -> None:
        del self._hands[answer.run, answer.part]
        self._leave(hand)
        if hand.error is not None and type(answer) is Completed:
            last = len(hand.part.steps) - 1
            answer = Failed(answer.run, answer.part, self._rank, last, hand.error, answer.started, answer.finished)
        self._desk.post(self.over(hand.message, answer))
        if self._held:
            self._advance()

    def _leave(self, hand: Hand) -> None:
        if hand.stage is not None and not hand.part.meeting:
            self._staging.leave(hand.stage)

    def over(self, message: Dispatch, answer: Answer) -> Answer:
        part = message.plan.parts[message.part]
        if part.meeting:
            key = (message.run, part.wave)
            wave = self._waves.setdefault(key, Wave())
            wave.left += 1
            if wave.left == part.meeting:
                del self._waves[key]
                if wave.stage is not None:
                    self._staging.leave(wave.stage)
        return super().over(message, answer)

    # ------------------------------------------------------------------------------------------ memory

    def release(self, message: Release) -> None:
        calls = self._calls.released(message.allocations)
        if calls:
            self._put(Drop(calls))
        super().release(message)

    def copy(self, message: Piece) -> None:
        if self._ending:  # its death is the answer
            return
        if self._sharing.share(message):
            now = self._clock()
            self._desk.post(Completed(message.run, message.part, self._rank, now, now))
            return
        if not isinstance(message, Read):
            try:
                move = self._sharing.move((message.target.allocation,), self._copies)
            except MemoryError as error:
                self._copied(message, error)
                return
            if move is not None:
                move.waiting.append(lambda: self._copy(message))
                return
        self._copy(message)

    def fetch(self, slot: Slot, args: Sequence[Any], scratch: Sequence[int], plan: Plan) -> asyncio.Future[None] | None:
        """A callback is about to see a slot: it shares its memory with nothing, nor will it. (Nobody is told when a callback has ended.)"""
        tensor = args[slot.index] if slot.source is Source.ARGUMENT else None
        if type(tensor) is not DeviceTensor:
            return None
        try:
            move = self._sharing.move((tensor.allocation,), self._copies)
        except MemoryError as error:
            failed_to_move: asyncio.Future[None] = self._loop.create_future()
            failed_to_move.set_exception(error)
            return failed_to_move
        self._shared.write((tensor.allocation,))
        if move is None:
            return None
        moved: asyncio.Future[None] = self._loop.create_future()
        move.waiting.append(partial(_settle, moved))
        return moved

    def _copy(self, message: Piece) -> None:
        if size_of(message) <= LARGE_COPY:
            self._copied(message, self.copied(message))
            return
        self._copies.do(lambda: self.copied(message), lambda answer: self._copied(message, answer))

    def _copied(self, message: Piece, answer: Answer | Exception) -> None:
        if isinstance(answer, Exception):
            now = self._clock()
            answer = Failed(message.run, message.part, self._rank, -1, answer, now, now)
        if not self.dead:
            self._desk.post(answer)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _bring(hand: Hand, copies: list[tuple[Array, Array]]) -> None:
    """Copy to the host; what cannot be copied fails the part."""
    try:
        copy_all(copies)
    except Exception as error:
        hand.error = error
