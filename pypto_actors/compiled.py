"""Compiled programs: a program with the configuration that it is to run on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from pypto_actors.config import DistributedConfig
from pypto_actors.errors import InternalError
from pypto_actors.parameters import Parameter
from pypto_actors.program import Program


class DistributedCompiledProgram:
    """A program and its configuration. To a worker it is the same program as the plain one.

    Attributes:
        program: the plain program.
        config: the configuration.
        name, stage, params: the program's.
    """

    open_worker: ClassVar[Callable[..., Any] | None] = None  # set by worker.py, which stands above

    def __init__(self, program: Program, config: DistributedConfig) -> None:
        self.program = program
        self.config = config

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def stage(self) -> str | None:
        return self.program.stage

    @property
    def params(self) -> tuple[Parameter, ...]:
        return self.program.params

    def prepare(self, extra_compiled: Iterable[Any] = (), **worker_options: Any) -> Any:
        """A `DistributedWorker` of this program and `extra_compiled`, not yet entered; options as there."""
        if type(self).open_worker is None:
            raise InternalError("no worker is imported")
        return type(self).open_worker([self, *extra_compiled], **worker_options)

    async def __call__(self, *args: Any) -> Any:
        """One-shot: open a worker, run, close; gives the `RunResult`."""
        async with self.prepare() as worker:
            return await worker.run(self, *args)

    def __repr__(self) -> str:
        return f"<DistributedCompiledProgram {self.program!r} on {self.config!r}>"
