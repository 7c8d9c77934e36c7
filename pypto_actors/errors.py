"""The error tree: one root, and below it what says who is at fault.

Every class also derives from the builtin that PyPTO raises in that place, so that code written for PyPTO catches the same things.
"""

from __future__ import annotations

from functools import partial
from typing import Any


def text_of(error: BaseException) -> str:
    """The type of an exception and what it says, also where its own `__str__` raises."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        return f"{name} (its text cannot be made: its __str__ raises)"
    return f"{name}: {text}" if text else name


def shown(value: object) -> str:
    """`repr(value)`, or the type where that raises."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} whose __repr__ raises>"


class PyptoActorsError(Exception):
    """Root of all errors of this package."""


class ArgumentTypeError(PyptoActorsError, TypeError):
    """An argument is of the wrong kind, or there are too many or too few."""


class ArgumentValueError(PyptoActorsError, ValueError):
    """An argument is of the right kind and has a wrong shape, dtype, dimension or value."""


class AmbiguousProgramError(PyptoActorsError, TypeError):
    """`worker(*args)` on a worker with several programs."""


class StaleTensorError(PyptoActorsError, ValueError):
    """A device tensor that was freed, was lost with its device, or belongs to another worker."""


class PlacementError(PyptoActorsError, ValueError):
    """A device tensor that lives on another device than the one where the program uses it."""


class UnknownProgramError(PyptoActorsError, ValueError):
    """A program that this worker does not know, or that was unregistered."""


class ProgramMismatchError(PyptoActorsError, ValueError):
    """Programs of one worker that were compiled for different platforms, runtimes or devices."""


class ProgramError(PyptoActorsError, RuntimeError):
    """A fault found while a program was declared or recorded."""


class ProgramLoadError(PyptoActorsError, RuntimeError):
    """A file or a directory from which no program can be loaded."""


class KernelError(PyptoActorsError, RuntimeError):
    """A kernel or a callback raised. The original is `__cause__` (an `ExceptionGroup` where several members of a gang failed).

    Attributes:
        program: name of the program.
        kernel: name of the kernel, `None` for a host callback.
        device: rank of the device, `None` for a host callback.
    """

    def __init__(self, text: str, *, program: str | None = None, kernel: str | None = None, device: int | None = None) -> None:
        super().__init__(text)
        self.program = program
        self.kernel = kernel
        self.device = device


class DeviceFailedError(PyptoActorsError, RuntimeError):
    """A device died while it held this dispatch, or is lost for good."""


class DependencyFailedError(PyptoActorsError, RuntimeError):
    """A dispatch named in `after=` failed, expired or was cancelled."""


class RunCancelledError(PyptoActorsError, RuntimeError):
    """The dispatch was cancelled before it started."""


class WorkerClosedError(PyptoActorsError, RuntimeError):
    """The worker is closed, or closed before the dispatch could start."""


class QueueFullError(PyptoActorsError, RuntimeError):
    """The queue of accepted dispatches is full.

    Attributes:
        queued: how many dispatches are accepted and not yet handed over.
        limit: the bound (`max_queued`).
    """

    def __init__(self, text: str, *, queued: int, limit: int) -> None:
        super().__init__(text)
        self.queued = queued
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), queued=self.queued, limit=self.limit), self.args, vars(self)


class DeadlineExceededError(PyptoActorsError, TimeoutError):
    """The deadline passed before the dispatch was handed to its devices."""


class DeviceOutOfMemoryError(PyptoActorsError, MemoryError):
    """A device has not enough free memory.

    Attributes:
        asked: bytes asked for.
        free: bytes free at that moment.
        capacity: bytes of the device.
    """

    def __init__(self, text: str, *, asked: int, free: int, capacity: int) -> None:
        super().__init__(text)
        self.asked = asked
        self.free = free
        self.capacity = capacity

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), asked=self.asked, free=self.free, capacity=self.capacity), self.args, vars(self)


class InternalError(PyptoActorsError, RuntimeError):
    """A fault of this package itself; please report it."""
