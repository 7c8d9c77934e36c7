"""The host actor: it runs host callbacks, `async` ones as tasks on the loop, others in threads (inline: on the loop)."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from pypto_actors.errors import InternalError, text_of
from pypto_actors.executor import Answer, Executor
from pypto_actors.messages import Call, Completed, Failed
from pypto_actors.plan import Slot, Source
from pypto_actors.values import DeviceTensor


class Inside:
    """Marks the context of a running callback, so that what waits on its own worker can be refused."""

    __slots__ = ("active", "name", "worker")

    def __init__(self, worker: object, name: str) -> None:
        self.worker = worker
        self.name = name
        self.active = True


INSIDE: contextvars.ContextVar[Inside | None] = contextvars.ContextVar("pypto_actors.inside", default=None)


class HostActor:
    """Runs callbacks. `run_in_thread(work)` has `work` done in a callback thread and its answer posted; `None`: on the loop."""

    def __init__(
        self,
        worker: object,
        loop: asyncio.AbstractEventLoop,
        executors: Sequence[Executor],
        post: Callable[[Answer], None],
        run_in_thread: Callable[[Callable[[], Answer]], None] | None,
        named: Mapping[str, Callable[..., Any]],
    ) -> None:
        self._worker = worker
        self._loop = loop
        self.executors = list(executors)
        self._post = post
        self._run_in_thread = run_in_thread
        self._named = named
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<HostActor: {len(self._tasks)} async callbacks running>"

    def receive(self, message: Call) -> None:
        part = message.plan.parts[message.part]
        fetching = [future for slot in part.slots if (future := self._fetch(slot, message)) is not None]
        if not fetching:
            self._begin(message)
            return
        task = self._loop.create_task(self._begin_later(message, fetching), name=f"fetches for callback {part.steps[0].name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fetch(self, slot: Slot, message: Call) -> asyncio.Future[None] | None:
        """Where the memory of a device is out of reach, what a callback sees of it is fetched first."""
        executor = self.executors[self._device(slot, message)]
        fetch = getattr(executor, "fetch", None)
        return None if fetch is None else fetch(slot, message.args, message.scratch, message.plan)

    async def _begin_later(self, message: Call, fetching: Sequence[asyncio.Future[None]]) -> None:
        outcomes = await asyncio.gather(*fetching, return_exceptions=True)
        error = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        if error is None:
            self._begin(message)
        else:
            self._post(self._failed(message, error, self._loop.time(), -1))

    def _begin(self, message: Call) -> None:
        part = message.plan.parts[message.part]
        callback = part.callback
        function = self._named[callback] if isinstance(callback, str) else callback
        if function is None:
            raise InternalError(f"{message!r} is no callback")
        try:
            values = [self._value(slot, message) for slot in part.slots]
            arguments = [values[slot] for slot in part.steps[0].slots]
            lent = [value for slot, value in zip(part.slots, values, strict=True) if self._is_lent(slot, message)]
        except Exception as error:
            self._post(self._failed(message, error, self._loop.time(), -1))
            return
        inside = Inside(self._worker, part.steps[0].name)
        context = contextvars.copy_context()
        context.run(INSIDE.set, inside)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
            work = self._run_async(message, function, arguments, lent, inside)
            task = self._loop.create_task(work, context=context, name=f"callback {inside.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._run_in_thread is None:
            self._post(context.run(self._run, message, function, arguments, lent, inside))
        else:
            self._run_in_thread(lambda: context.run(self._run, message, function, arguments, lent, inside))

    def _value(self, slot: Slot, message: Call) -> Any:
        return self.executors[self._device(slot, message)].window(slot, message.args, message.scratch, message.plan)

    def _device(self, slot: Slot, message: Call) -> int:
        """Where the value of a slot lives; what lives on no device, any can give."""
        if slot.source is Source.ARGUMENT and isinstance(message.args[slot.index], DeviceTensor):
            return int(message.args[slot.index].device)
        return message.plan.scratch[slot.index].device if slot.source is Source.SCRATCH else 0

    def _run(self, message: Call, function: Callable[..., Any], arguments: list[Any], lent: list[Any], inside: Inside) -> Answer:
        started = self._loop.time()
        try:
            value = function(*arguments)
            if isinstance(value, (Coroutine, asyncio.Future)):  # a handle can be awaited too, and is a value
                if isinstance(value, Coroutine):
                    value.close()
                raise TypeError(f"callback {inside.name!r} returned an awaitable; declare it with `async def` so that it runs on the loop")
            value = own(value, lent)
        except BaseException as error:
            return self._failed(message, error, started)
        finally:
            inside.active = False
        return Completed(message.run, message.part, -1, started, self._loop.time(), value)

    async def _run_async(self, message: Call, function: Callable[..., Any], arguments: list[Any], lent: list[Any], inside: Inside) -> None:
        started = self._loop.time()
        try:
            value = own(await function(*arguments), lent)
        except BaseException as error:
            self._post(self._failed(message, error, started))
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        else:
            self._post(Completed(message.run, message.part, -1, started, self._loop.time(), value))
        finally:
            inside.active = False

    @staticmethod
    def _is_lent(slot: Slot, message: Call) -> bool:
        """Is it memory of a device, which is not the caller's to keep?"""
        return slot.source is Source.SCRATCH or (slot.source is Source.ARGUMENT and isinstance(message.args[slot.index], DeviceTensor))

    def _failed(self, message: Call, error: BaseException, started: float, step: int = 0) -> Failed:
        """The callback raised, or (step -1) could not be called."""
        return Failed(message.run, message.part, -1, step, error, started, self._loop.time())


def own(value: Any, lent: Sequence[Any]) -> Any:
    """What a callback returned, with copies of memory of a device, which others will write: of arrays, alone and in plain containers. What
    else holds such memory is copied as a whole."""
    if not lent:
        return value
    if type(value) is np.ndarray and not value.dtype.hasobject:
        return value.copy() if _borrowed(value, lent) else value
    kind = type(value)
    if kind in (list, tuple):
        return kind([own(item, lent) for item in value])
    if kind is dict:
        return {key: own(item, lent) for key, item in value.items()}
    if not _holds(value, lent, set()):
        return value
    if isinstance(value, memoryview):
        return memoryview(np.asarray(value).copy())  # type: ignore[arg-type]
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise TypeError(
            f"what the callback returned, a {kind.__name__}, holds memory of a device and cannot be copied ({text_of(error)}); "
            "return a copy of the array"
        ) from error


def _borrowed(array: Any, lent: Sequence[Any]) -> bool:
    return any(np.may_share_memory(array, other) for other in lent)


def _holds(value: Any, lent: Sequence[Any], seen: set[int]) -> bool:
    """Does a value hold memory that is lent: a container, a dataclass, an array of objects? Other objects are the callback's."""
    if id(value) in seen or isinstance(value, (str, bytes, bytearray, range)):
        return False
    seen.add(id(value))
    if isinstance(value, memoryview):
        return _borrowed(np.asarray(value), lent)
    if isinstance(value, np.ndarray):
        return _borrowed(value, lent) or (value.dtype == object and any(_holds(item, lent, seen) for item in value.flat))
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts += value.values()
    elif isinstance(value, (Sequence, Set)):
        parts += value
    if is_dataclass(value) and not isinstance(value, type):
        parts += [getattr(value, each.name, None) for each in fields(value)]
    elif isinstance(value, SimpleNamespace):
        parts += vars(value).values()
    return any(_holds(part, lent, seen) for part in parts)
