"""The way to the actor of one device and back. Answers come by Ray's completion callbacks, in some thread, and from there to the loop:
one wake-up for all that come before it is heard."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from pypto_actors.errors import DeviceFailedError
from pypto_actors.executor import Answer, Desk

PATIENCE = 30.0  # seconds for bytes that the loop waits for
Then: TypeAlias = Callable[[Any], Answer | None]  # gets what a call gave, on the loop; may have an answer for the coordinator


logger = logging.getLogger("pypto_actors")


class Lost(Exception):
    """Stands for the result of a call to an actor that has died."""


class Inbox:
    """Results on their way from Ray's thread to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, desk: Desk) -> None:
        self.loop = loop
        self.desk = desk
        self._results: deque[tuple[Then, Any]] = deque()
        self._awake = False
        self.links: dict[str, Link] = {}  # by the id of the actor

    def put(self, then: Then, ref: Any, result: Any) -> None:
        """From any thread. `ref` is only kept alive until here."""
        self._results.append((then, result))
        if not self._awake:
            self._awake = True
            with suppress(RuntimeError):  # the loop is closed, and the death of an actor comes late
                self.loop.call_soon_threadsafe(self.take)

    def take(self) -> None:
        self._awake = False
        results, desk = self._results, self.desk
        if len(results) == 1:
            then, result = results.popleft()
            answer = then(result)
            if answer is not None:
                desk.answered(answer)
            else:
                desk.turn()
            return
        while results:
            then, result = results.popleft()
            answer = then(result)
            if answer is not None:
                desk.post(answer)
        desk.turn()


class Link:
    """`ended(reason)` hears of the actor's end, once, on the loop."""

    def __init__(self, rank: int, inbox: Inbox, ended: Callable[[str], None]) -> None:
        self._rank = rank
        self._inbox = inbox
        self._ended = ended
        self._actor: Any = None
        self._id = ""
        self._over = False
        self.opened = False
        self.pid = 0
        self.owed = 0  # answers
        self.gone: asyncio.Future[None] = inbox.loop.create_future()

    def open(self, actor: Any, blas_threads: int | None, path: Sequence[str]) -> asyncio.Future[Any]:
        """Use this actor; what comes back is done when it has started."""
        self._actor = actor
        self.opened = True
        self._inbox.links[actor._actor_id.hex()] = self
        self._id = actor._actor_id.hex()
        self._do, self._io = actor.do.remote, actor.io.remote
        ready: asyncio.Future[Any] = self._inbox.loop.create_future()
        self._send(actor.start.remote, (blas_threads, list(path)), partial(self._started, ready))
        self._send(actor.watch.remote, (), self._watched)
        return ready

    def _started(self, ready: asyncio.Future[Any], result: Any) -> None:
        if ready.done():
            return
        if isinstance(result, int):
            self.pid = result
            ready.set_result(None)
        elif isinstance(result, Lost):
            ready.set_exception(RuntimeError(str(result)))
        else:
            ready.set_exception(result)

    def _watched(self, result: Any) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    # ------------------------------------------------------------------------------------------ calls

    def do(self, frame: bytes, blobs: Sequence[Any], then: Then) -> Any:
        """A call of the device's own thread, in order."""
        self.owed += 1
        return self._send(self._do, (frame, *blobs), partial(self._answered, then))

    def io(self, frame: bytes, blobs: Sequence[Any], then: Then) -> Any:
        """A call beside the kernels; such calls are in order among themselves."""
        self.owed += 1
        return self._send(self._io, (frame, *blobs), partial(self._answered, then))

    def wait(self, ref: Any) -> Any:
        """What a call gives, at once; whoever calls waits, and so does the loop.

        Raises:
            DeviceFailedError: the device has died, or has not answered for long and is given up.
        """
        ray = sys.modules["ray"]
        try:
            return ray.get(ref, timeout=PATIENCE)
        except ray.exceptions.GetTimeoutError:
            reason = f"its actor did not answer within {PATIENCE:.0f} s"
            self.kill()
            self.lost(reason)
        except Exception as error:
            fault = self.fault(error)
            if not isinstance(fault, Lost):
                raise fault from error
            reason = str(fault)
        raise DeviceFailedError(f"device {self._rank} died ({reason})")

    def tell(self, frame: bytes) -> None:
        """A call that nobody waits for."""
        self._do(frame)

    def fetch(self, frame: bytes, in_order: bool) -> Any:
        """A call whose result another actor is to get: its ref."""
        return (self._do if in_order else self._io)(frame)

    def _answered(self, then: Then, result: Any) -> Answer | None:
        self.owed -= 1
        return then(result)

    def _send(self, method: Callable[..., Any], arguments: Sequence[Any], then: Then) -> Any:
        ref = method(*arguments)
        ref._on_completed(partial(self._inbox.put, partial(self._result, then), ref))
        return ref

    def _result(self, then: Then, result: Any) -> Answer | None:
        try:
            if isinstance(result, Exception):
                result = self.fault(result)
            return then(result)
        except Exception as error:  # a fault of our own must leave nobody waiting
            logger.critical("an answer of a device could not be taken; the device is given up", exc_info=error)
            self.kill()
            self.lost(f"its answer could not be taken: {error!r}; please report it")
            return None

    def fault(self, error: Exception) -> Exception:
        """The error of a call; if the actor has died, everybody hears of that first."""
        exceptions = sys.modules["ray.exceptions"]
        if isinstance(error, exceptions.RayTaskError):
            cause = getattr(error, "cause", None)
            error = cause if isinstance(cause, Exception) else error
            if not isinstance(error, exceptions.RayActorError) or error.actor_id == self._id:
                return error
        if isinstance(error, exceptions.RayActorError):
            reason = _reason(error)
            if error.actor_id in (self._id, None):
                self.lost(reason)
                return Lost(reason)
            peer = self._inbox.links.get(error.actor_id)
            if peer is not None:
                peer.lost(reason)
            return DeviceFailedError(f"{reason}; bytes of it were to go to device {self._rank}")
        return error

    # ------------------------------------------------------------------------------------------ ends

    def lost(self, reason: str) -> None:
        if not self._over:
            self._over = True
            self._ended(reason)

    def kill(self) -> None:
        """Have the actor killed, at once; its end is heard of later."""
        ray = sys.modules["ray"]
        if self._actor is not None:
            with suppress(Exception):  # Ray may have been shut down under us
                ray.kill(self._actor)


def _reason(error: Exception) -> str:
    """What Ray says of the end of an actor, without its advice."""
    text = " ".join(str(error).split())
    _, _, why = text.rpartition("The actor is dead because ")
    _, _, detail = why.rpartition("Worker exit detail: ")
    sentence = detail.partition(" Some common causes")[0].partition(" There are some potential root causes")[0]
    return f"its actor died: {sentence.rstrip('.') or type(error).__name__}"
