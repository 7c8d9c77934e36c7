"""What a loop says when nothing can ever happen again: who waits for what, and where."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

from pypto_actors.errors import PyptoActorsError

_SHOWN = 40  # tasks in the text of the error; `DeadlockError.waiting` has all of them
_WIDTH = 240  # characters of one repr
_SUSPENDED = (CoroutineType, GeneratorType, AsyncGeneratorType)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One pending task. `stack` is outermost first, each `file:line in function`; the last one is where it stands."""

    task: str
    stack: tuple[str, ...]
    awaits: str

    def __str__(self) -> str:
        return "\n".join([f"{self.task!r} awaits {self.awaits}", *(f"    at {place}" for place in self.stack)])


class DeadlockError(PyptoActorsError):
    """Nothing is ready and no timer is set, or something spins and time stands. `.waiting`: each pending task."""

    def __init__(self, reason: str, waiting: tuple[Waiting, ...] = ()) -> None:
        lines = [reason, *(f"  {line}" for each in waiting[:_SHOWN] for line in str(each).splitlines())]
        if len(waiting) > _SHOWN:
            lines.append(f"  … and {len(waiting) - _SHOWN} more tasks (see .waiting)")
        others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
        if others:
            lines.append(
                f"  Other threads live: {', '.join(others[:8])}{', …' if len(others) > 8 else ''}. "
                "The loop waits only for work of `run_in_executor` and `anyio.to_thread`."
            )
        super().__init__("\n".join(lines))
        self.waiting = waiting


def who_waits(loop: asyncio.AbstractEventLoop) -> tuple[Waiting, ...]:
    """Each pending task of `loop`, in the order of their names (`Task-2` before `Task-10`)."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name()))
    return tuple(_describe(task) for task in tasks)


def _describe(task: asyncio.Task[Any]) -> Waiting:
    frames = list(_await_chain(task.get_coro()))
    stack = tuple(f"{_short(f.f_code.co_filename)}:{f.f_lineno} in {f.f_code.co_qualname}" for f in frames)
    awaits = _safe_repr(getattr(task, "_fut_waiter", None))
    if frames and "self" in frames[-1].f_locals:
        # `await event.wait()` and `await handle` stand in a method of what they wait for: it says more than its future.
        awaits = f"{_safe_repr(frames[-1].f_locals['self'])} by {awaits}"
    return Waiting(task.get_name(), stack, awaits)


def _await_chain(awaited: object) -> Iterator[FrameType]:
    """The frames of what awaits what, down to the innermost one that is written in Python."""
    seen: set[int] = set()
    while awaited is not None and id(awaited) not in seen:
        seen.add(id(awaited))
        if isinstance(awaited, CoroutineType):
            frame, inner = awaited.cr_frame, awaited.cr_await
        elif isinstance(awaited, GeneratorType):
            frame, inner = awaited.gi_frame, awaited.gi_yieldfrom
        elif isinstance(awaited, AsyncGeneratorType):
            frame, inner = awaited.ag_frame, awaited.ag_await
        else:
            # `coroutine.__await__()` and `agen.__anext__()` are opaque wrappers; what they drive is all they refer to.
            frame, inner = None, next((o for o in gc.get_referents(awaited) if isinstance(o, _SUSPENDED)), None)
        if frame is not None:
            yield frame
        awaited = inner


def _short(path: str) -> str:
    """Relative to the working directory where the file lies below it, so that the text can be clicked and compared."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)


def _safe_repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception as fault:  # a broken repr must not hide the deadlock
        text = f"<{type(value).__qualname__} whose repr raised {type(fault).__name__}>"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
