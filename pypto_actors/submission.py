"""The way of a call into the coordinator's mailbox: check the arguments, find what they touch, take room, or wait for room."""

from __future__ import annotations

import asyncio
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from pypto_actors.accesses import accesses_of, alias, host_accesses
from pypto_actors.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeadlineExceededError,
    InternalError,
    ProgramError,
    PyptoActorsError,
    QueueFullError,
    StaleTensorError,
    UnknownProgramError,
    WorkerClosedError,
)
from pypto_actors.handle import DistributedRunHandle
from pypto_actors.mailbox import Counter
from pypto_actors.messages import Submit
from pypto_actors.parameters import Parameter, scalar_of
from pypto_actors.plan import Footprint, Plan, PlanFamily
from pypto_actors.program import Program
from pypto_actors.registry import Entry
from pypto_actors.signature import Signed, check_writable, sign_one
from pypto_actors.system import System
from pypto_actors.tensors import Tensors
from pypto_actors.values import Access, DeviceTensor, Fixed, StackedDeviceTensor
from pypto_actors.waiter import Waiter

Array = np.ndarray[Any, Any]


class Prepared(Struct, eq=False):
    """A checked call: all that a `Submit` needs but its number and its time."""

    entry: Entry
    signed: Signed
    args: tuple[Any, ...]
    accesses: tuple[Access, ...]
    outputs: tuple[Array, ...]
    serial: bool
    # of the entry and of what is known of the signature, at hand
    program: Program
    shown: Any
    stage: str | None
    plans: PlanFamily
    rank: int
    plan: Plan | None  # the only one, where there is only one
    fixed: Fixed | None = None


class Options(Struct, frozen=True, eq=False):
    """The options of a call, checked."""

    rank: int = -1
    priority: int = 0
    deadline: float | None = None
    after: tuple[DistributedRunHandle, ...] = ()


PLAIN = Options()


def prepare(entry: Entry, given: tuple[Any, ...], tensors: Tensors) -> Prepared:
    """Check a call. Raises the first fault, with the parameter, what came and what was expected."""
    if entry.resident:  # its calls have brought device tensors only, which can be looked up as they are
        if entry.epoch != tensors.epoch:
            entry.forget_calls(tensors.epoch)
        try:
            known: Prepared | None = entry.calls.get(given)
        except TypeError:  # this one brings something else
            entry.resident = False
        else:
            if known is not None:
                return known
    # what `entry.sign` does where nothing is new, in this frame
    key = tuple([arg.signature if type(arg) is DeviceTensor else sign_one(arg) for arg in given])
    signed = None if entry.has_static or len(entry.signed) > 1 else entry.signed.get(key)
    if signed is None:
        signed = entry.sign(given)
    call = _prepare(entry, signed, given, tensors)
    if entry.resident and signed.resident:
        entry.keep_call(given, call)
    return call


def _prepare(entry: Entry, signed: Signed, given: Sequence[Any], tensors: Tensors) -> Prepared:
    args: list[Any] = list(given)
    outputs: tuple[Array, ...] = ()
    if signed.outputs:
        outputs = tuple([np.zeros(shape, dtype) for _, shape, dtype in signed.outputs])
        for (position, _, _), output in zip(signed.outputs, outputs, strict=True):
            args.insert(position, output)
    for position in signed.stacked:
        args += args[position].shards
    params = entry.program.params
    alive = tensors.alive
    for position in signed.tensors:
        if args[position].allocation not in alive:
            tensors.check(args[position], f"{_where(position, signed, given, params)} of program {entry.program.name!r}")
    for position in signed.writable:
        if not args[position].flags.writeable:
            check_writable(entry.program, params[position], args[position])
    for position, kind in signed.scalars:
        if type(args[position]) is not kind:
            args[position] = scalar_of(args[position], kind)
    whole = signed.whole
    if whole is not None:
        if signed.multiple:
            parts = [(position, list(accesses_of(args[position], write))) for position, write in whole]
            accesses = [access for _, some in parts for access in some]
            serial = alias(parts, args)
        else:
            accesses = []
            for position, write in whole:
                accesses += accesses_of(args[position], write)
            serial = False
    else:
        parts = _partial(signed, args)
        accesses = [access for _, some in parts for access in some]
        serial = signed.multiple and alias(parts, args)
    if serial:
        _check_apart(entry, signed.plans, args)
    program, plans = entry.program, signed.plans
    plan = None if serial else plans.fixed
    return Prepared(
        entry, signed, tuple(args), tuple(accesses), outputs, serial, program, entry.shown, program.stage, plans, signed.rank, plan
    )


def _where(position: int, signed: Signed, given: Sequence[Any], params: Sequence[Parameter]) -> str:
    """Which parameter an argument is for; shards stand behind the others."""
    if position < len(params):
        return f"parameter {params[position].name!r}"
    shard = position - len(params)
    for stacked, arg in zip(signed.stacked, [arg for arg in given if isinstance(arg, StackedDeviceTensor)], strict=True):
        if shard < len(arg):
            return f"parameter {params[stacked].name!r} (shard {shard})"
        shard -= len(arg)
    raise InternalError(f"there is no argument {position}")


def _partial(signed: Signed, args: Sequence[Any]) -> list[tuple[int, list[Access]]]:
    """What is touched, with the position of its argument."""
    fresh = {position for position, _, _ in signed.outputs}
    accesses: list[tuple[int, list[Access]]] = []
    touched: set[int] = set()
    for footprint in signed.plans.footprints:
        position = footprint.argument
        if position in fresh:
            continue
        touched.add(position)
        accesses.append((position, _touched(footprint, args)))
    for position, arg in enumerate(args):
        if position not in touched and position not in fresh:
            if type(arg) is DeviceTensor:
                accesses.append((position, [arg.reads]))
            elif isinstance(arg, np.ndarray):
                accesses.append((position, host_accesses(arg, False)))
    return accesses


def _touched(footprint: Footprint, args: Sequence[Any]) -> list[Access]:
    arg = args[footprint.argument]
    if type(arg) is DeviceTensor:
        return [(arg.allocation, arg.offset + footprint.start, arg.offset + footprint.stop, footprint.write)]
    for start, stop, squeeze in footprint.path:
        arg = arg[start, ...] if squeeze else arg[start:stop]
    return host_accesses(arg, footprint.write)


def _check_apart(entry: Entry, plans: PlanFamily, args: Sequence[Any]) -> None:
    """What is touched at the same time must be apart, also where it is the call that makes parameters share memory."""
    for apart in plans.apart:
        touched = [[access for footprint in footprints for access in _touched(footprint, args)] for footprints in apart.sets]
        for number, some in enumerate(touched):
            for others in touched[number + 1 :]:
                if any(one[0] == two[0] and one[1] < two[2] and two[1] < one[2] and (one[3] or two[3]) for one in some for two in others):
                    raise ProgramError(
                        f"members of the gang {apart.name!r} of program {entry.program.name!r} share bytes of these arguments that one of "
                        "them writes; pass arrays that are apart"
                    )


def options_of(
    device: int | None, priority: int, deadline: float | None, after: Iterable[DistributedRunHandle], worker: Any, world_size: int
) -> Options:
    """Check the options of a call."""
    rank = -1
    if device is not None:
        rank = rank_of(device, world_size)
    if type(priority) is not int:
        try:
            if isinstance(priority, bool):
                raise TypeError
            priority = operator.index(priority)
        except TypeError:
            raise ArgumentTypeError(f"priority must be an int, got {priority!r}") from None
    if deadline is not None:
        if isinstance(deadline, bool) or not isinstance(deadline, (int, float, np.integer, np.floating)):
            raise ArgumentTypeError(f"deadline must be a time of the loop's clock in seconds, or None, got {deadline!r}")
        try:
            deadline = float(deadline)
        except OverflowError:
            raise ArgumentValueError("deadline is too large for a float; give None where there is none") from None
        if math.isnan(deadline):
            raise ArgumentValueError("deadline must be a time of the loop's clock in seconds, got nan")
        if deadline == math.inf:
            deadline = None
    return Options(rank, priority, deadline, _handles(after, worker) if after != () else ())


def rank_of(device: Any, world_size: int) -> int:
    try:
        if isinstance(device, bool):
            raise TypeError
        rank = operator.index(device)
    except TypeError:
        raise ArgumentTypeError(f"device must be a rank, an int from 0 to {world_size - 1}, got {device!r}") from None
    if not 0 <= rank < world_size:
        raise ArgumentValueError(f"there is no device {rank}; ranks go from 0 to {world_size - 1}")
    return rank


def _handles(after: Iterable[DistributedRunHandle], worker: Any) -> tuple[DistributedRunHandle, ...]:
    if isinstance(after, DistributedRunHandle):
        after = (after,)
    try:
        handles = tuple(after)
    except TypeError:
        raise ArgumentTypeError(f"after takes handles of dispatches, got {after!r}") from None
    for handle in handles:
        if not isinstance(handle, DistributedRunHandle):
            raise ArgumentTypeError(f"after takes handles of dispatches, as `submit` gives them, got {handle!r}")
        if handle.worker is not worker:
            raise ArgumentValueError(f"{handle!r} is a dispatch of another worker; await it before the call instead")
    return handles


def accept(
    system: System, worker: Any, counter: Counter, call: Prepared, options: Options, waiter: Waiter | asyncio.Future[None] | None = None
) -> DistributedRunHandle:
    """Put the call into the mailbox; room for it is taken already. `waiter`: the caller does nothing else before its end."""
    counter.last = run = counter.last + 1
    now = system.clock()
    if options is PLAIN:
        after: tuple[DistributedRunHandle, ...] = ()
        message = Submit(
            run, call.program, call.plans, call.args, call.accesses, now, call.rank, call.serial, 0, None, call.stage, (), True, call.fixed
        )
    else:
        after = options.after
        message = Submit(
            run,
            call.program,
            call.plans,
            call.args,
            call.accesses,
            now,
            options.rank if options.rank >= 0 else call.rank,
            call.serial,
            options.priority,
            options.deadline,
            call.stage,
            tuple([handle.id for handle in after]),
            False,
            call.fixed,
        )
    plan = call.plan
    sole = -1 if plan is None else plan.sole
    handle = DistributedRunHandle(run, call.shown, message, after, call.outputs, now, system, worker, plan, sole)
    if waiter is not None:
        handle.waiters = waiter
        system.tell_now(message, handle)
    else:
        system.tell(message, handle)
    return handle


class Waiting:
    """A call that waits for room. It is checked again, and accepted, in the step in which it gets room."""

    __slots__ = ("_counter", "_open", "_tensors", "call", "future", "handle", "options", "system", "timer", "worker")

    def __init__(
        self, system: System, worker: Any, counter: Counter, call: Prepared, options: Options, tensors: Tensors, is_open: Any
    ) -> None:
        self.system = system
        self.worker = worker
        self.call = call
        self.options = options
        self._counter = counter
        self._tensors = tensors
        self._open = is_open
        self.future: asyncio.Future[None] = system.loop.create_future()
        self.handle: DistributedRunHandle | None = None
        self.timer = system.loop.call_at(options.deadline, self._late) if options.deadline is not None else None

    def admit(self) -> bool:
        """Take the room, unless nobody wants it any more."""
        if self.future.done():
            return False
        error = self._fault()
        if error is not None:
            self.refuse(error)
            return False
        self._end_timer()
        self.handle = accept(self.system, self.worker, self._counter, self.call, self.options)
        self.future.set_result(None)
        return True

    def refuse(self, error: PyptoActorsError) -> None:
        self._end_timer()
        if not self.future.done():
            self.future.set_exception(error)

    def give_up(self) -> None:
        """Whoever waited is gone."""
        self._end_timer()
        if self in self.system.admission.waiting:
            self.system.admission.waiting.remove(self)

    def _fault(self) -> PyptoActorsError | None:
        entry = self.call.entry
        if not self._open():
            return WorkerClosedError("the worker was closed while the call waited for room in its queue")
        if not entry.active:
            return UnknownProgramError(f"program {entry.program.name!r} was unregistered while the call waited for room")
        for position in self.call.signed.tensors:
            try:
                self._tensors.check(self.call.args[position], f"an argument of program {entry.program.name!r}")
            except StaleTensorError as error:
                return error
        return None

    def _late(self) -> None:
        self.timer = None
        name = self.call.entry.program.name
        self.refuse(DeadlineExceededError(f"a dispatch of program {name!r} waited for room in the queue until its deadline"))
        self.give_up()

    def _end_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def queue_full(system: System) -> QueueFullError:
    admission = system.admission
    waits = f", and {len(admission.waiting)} calls wait for room" if admission.waiting else ""
    return QueueFullError(
        f"{admission.queued} dispatches are queued{waits}, the limit is {admission.limit}; "
        "`await submit` to wait for room, or raise max_queued",
        queued=admission.queued,
        limit=admission.limit,
    )
