"""Kernels and programs: what the decorators make of functions."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, overload

from pypto_actors.config import DistributedConfig
from pypto_actors.errors import InternalError, ProgramError
from pypto_actors.parameters import Mode, Parameter, hints_of, parameters_of

if TYPE_CHECKING:
    from pypto_actors.compiled import DistributedCompiledProgram
else:  # which stands above; those who look signatures up find this
    DistributedCompiledProgram = Any


class Kernel:
    """A function that runs on a device: numpy in, numpy out, in place. Calling it is calling the plain function.

    Attributes:
        name: the function's name.
        params: its parameters, each with a `.name`.
        function: the plain function.
    """

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any], frame: FrameType | None = None) -> None:
        if not callable(function):
            raise ProgramError(f"@kernel decorates a function, got {function!r}")
        functools.update_wrapper(self, function)
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.params: tuple[Parameter, ...] = parameters_of(
            function, hints_of(function, frame), f"kernel {self.name!r}", 0, defaults=True, static=False
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Kernel {self.name}({', '.join(map(repr, self.params))})>"


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make a function a kernel. Its parameters are annotated `InArray`, `OutArray`, `InOutArray`, `int`, `float` or `bool`.

    A kernel sees its `In` arrays read-only: writing one is a `KernelError` of the dispatch. It writes elements, and leaves the arrays
    themselves alone: their views are kept for the next dispatch, so a `shape` or a flag that it sets would stay. A subclass reaches it as
    a plain array.

    Raises:
        ProgramError: an annotation is missing or cannot be used.
    """
    return Kernel(function, sys._getframe(1))


class Program:
    """A function that runs on the host once and records which kernel runs on which device.

    Attributes:
        name: its name; the function's unless given.
        stage: such as `"prefill"` or `"decode"`: policies tell programs apart by it.
        params: the parameters after the orchestrator.
        callbacks: names of host callbacks that are bound at the worker.
        function: the plain function.
    """

    # set by compiled.py, which stands above
    compiler: ClassVar[Callable[[Program, DistributedConfig], DistributedCompiledProgram] | None] = None

    def __init__(
        self,
        function: Callable[..., None],
        name: str | None = None,
        stage: str | None = None,
        callbacks: Iterable[str] = (),
        frame: FrameType | None = None,
    ) -> None:
        if not callable(function):
            raise ProgramError(f"@program decorates a function, got {function!r}")
        functools.update_wrapper(self, function)
        self.function = function
        self.name: str = name or str(getattr(function, "__name__", "program"))
        self.stage = stage
        for what, given in (("name", name), ("stage", stage)):
            if given is not None and not isinstance(given, str):
                raise ProgramError(f"the {what} of a program is a str, got {given!r} for {self.name!r}")
        if isinstance(callbacks, str) or not isinstance(callbacks, Iterable):
            raise ProgramError(f"callbacks is a tuple of names such as ('verify',), got {callbacks!r}")
        self.callbacks = tuple(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, str):
                raise ProgramError(f"callbacks are names that the worker binds, got {callback!r} in program {self.name!r}")
        self.params: tuple[Parameter, ...] = parameters_of(
            function, hints_of(function, frame), f"program {self.name!r}", 1, defaults=False, static=True
        )
        self.every = tuple(range(len(self.params)))
        self.inputs = tuple(
            position for position in self.every if (array := self.params[position].array) is None or array.mode is not Mode.OUT
        )
        self.has_static = any(parameter.static for parameter in self.params)
        if not inspect.signature(function).parameters:
            raise ProgramError(f"program {self.name!r} takes no orchestrator: its first parameter is `orch: Orchestrator`")

    def compile(self, config: DistributedConfig | None = None) -> DistributedCompiledProgram:
        """A `DistributedCompiledProgram` for `config` (default: one simulated device)."""
        compiler = type(self).compiler
        if compiler is None:
            raise InternalError("no compiler is imported")
        return compiler(self, DistributedConfig() if config is None else config)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ProgramError(
            f"program {self.name!r} is recorded, not called: use `await worker.run({self.name}, …)`, or `await {self.name}.compile()(…)`"
        )

    def __repr__(self) -> str:
        stage = f" stage={self.stage!r}" if self.stage else ""
        return f"<Program {self.name}({', '.join(map(repr, self.params))}){stage}>"


@overload
def program(function: Callable[..., None], /) -> Program: ...


@overload
def program(
    *, name: str | None = None, stage: str | None = None, callbacks: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Program]: ...


def program(
    function: Callable[..., None] | None = None,
    /,
    *,
    name: str | None = None,
    stage: str | None = None,
    callbacks: Iterable[str] = (),
) -> Program | Callable[[Callable[..., None]], Program]:
    """Make a function a program: `@program`, or `@program(name=None, stage=None, callbacks=())`.

    The function is recorded once for each combination of static scalars, shapes and placement, and replayed after that.

    Raises:
        ProgramError: an annotation is missing or cannot be used.
    """
    if function is not None:
        return Program(function, frame=sys._getframe(1))

    def decorate(function: Callable[..., None]) -> Program:
        return Program(function, name, stage, callbacks, sys._getframe(1))

    return decorate
