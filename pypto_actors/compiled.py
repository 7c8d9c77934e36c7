"""Compiled programs: a program with the configuration that it is to run on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pypto_actors.config import DistributedConfig
from pypto_actors.digest import digest_of
from pypto_actors.errors import InternalError
from pypto_actors.parameters import Parameter
from pypto_actors.program import Program
from pypto_actors.saving import read, save

if TYPE_CHECKING:
    from pypto_actors.handle import RunResult
    from pypto_actors.worker import DistributedWorker
else:  # which stand above; those who look signatures up find this
    RunResult = DistributedWorker = Any


class DistributedCompiledProgram:
    """A program and its configuration. To a worker it is the same program as the plain one.

    Attributes:
        program: the plain program.
        config: the configuration.
        name, stage, params: the program's.
    """

    open_worker: ClassVar[Callable[..., DistributedWorker] | None] = None  # set by worker.py, which stands above

    def __init__(self, program: Program, config: DistributedConfig) -> None:
        if not isinstance(program, Program):
            raise TypeError(f"a compiled program is made of a program, got {program!r}")
        if not isinstance(config, DistributedConfig):
            raise TypeError(f"config must be a DistributedConfig, got {config!r}")
        self.program = program
        self.config = config

    @property
    def name(self) -> str:
        """The name of the program."""
        return self.program.name

    @property
    def stage(self) -> str | None:
        """The stage of the program."""
        return self.program.stage

    @property
    def params(self) -> tuple[Parameter, ...]:
        """The parameters of the program, after the orchestrator."""
        return self.program.params

    @functools.cached_property
    def digest(self) -> str:
        """Identity across processes: a hex SHA-256 of the source of the program and of what it uses, of parameters and configuration.

        Raises:
            ProgramError: the program is not one of an importable file with module-level kernels and callbacks; the text names why.
        """
        return digest_of(self.program, self.config)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a directory that stands on its own, for `from_dir`.

        Raises:
            ProgramError: as `digest`; or the program needs other files of its project, or the directory holds something else.
        """
        save(self.program, self.config, directory)

    @classmethod
    def from_dir(cls, directory: str | os.PathLike[str]) -> DistributedCompiledProgram:
        """Read what `save` wrote. This runs the code in the directory: load only what you trust.

        Raises:
            ProgramLoadError: the directory is damaged, changed or foreign; the text names the file, the fault and the remedy.
        """
        return cls(*read(directory))

    def prepare(self, extra_compiled: Iterable[AnyProgram] = (), **worker_options: Any) -> DistributedWorker:
        """A `DistributedWorker` of this program and `extra_compiled`, not yet entered; options as there."""
        open_worker = type(self).open_worker
        if open_worker is None:
            raise InternalError("no worker is imported")
        if isinstance(extra_compiled, (str, bytes)) or not isinstance(extra_compiled, Iterable):
            raise TypeError(f"extra_compiled is a list of programs, got {extra_compiled!r}; pass [program]")
        return open_worker([self, *extra_compiled], **worker_options)

    async def __call__(self, *args: Any) -> RunResult:
        """One-shot: open a worker, run, close; gives the `RunResult`."""
        async with self.prepare() as worker:
            return await worker.run(self, *args)

    def __repr__(self) -> str:
        return f"<DistributedCompiledProgram {self.program!r} on {self.config!r}>"


Program.compiler = DistributedCompiledProgram
AnyProgram: TypeAlias = Program | DistributedCompiledProgram
