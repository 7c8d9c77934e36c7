"""The handle of a registered program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pypto_actors.compiled import AnyProgram
from pypto_actors.registry import Entry

if TYPE_CHECKING:
    from pypto_actors.handle import RunResult


class Owner(Protocol):
    """What a registration needs of its worker."""

    async def run(self, program: AnyProgram, /, *args: Any, **options: Any) -> RunResult: ...

    async def _unregister(self, entry: Entry) -> None: ...


class RegistrationHandle:
    """A program of a worker. `await handle(*args)` is `worker.run(program, *args)`, with the same options.

    Attributes:
        program: the program.
    """

    __slots__ = ("_entry", "_worker")

    def __init__(self, worker: Owner, entry: Entry) -> None:
        self._worker = worker
        self._entry = entry

    @property
    def program(self) -> AnyProgram:
        """The program, as it was registered."""
        return self._entry.shown

    async def __call__(self, *args: Any, **options: Any) -> RunResult:
        """`worker.run(program, *args)`, with the same options; `UnknownProgramError` once it is unregistered."""
        self._entry.check_active()
        return await self._worker.run(self._entry.program, *args, **options)

    async def unregister(self) -> None:
        """No new dispatches of the program, by whichever handle; returns when the accepted ones have ended. May be called twice."""
        await self._worker._unregister(self._entry)

    def __repr__(self) -> str:
        return f"<RegistrationHandle of {self._entry.program.name!r}: {'active' if self._entry.active else 'unregistered'}>"
