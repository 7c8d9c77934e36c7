"""Checks of a worker's arguments, all made by its constructor, before anything starts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from msgspec import Struct

from pypto_actors.compiled import DistributedCompiledProgram
from pypto_actors.config import DistributedConfig
from pypto_actors.errors import ProgramMismatchError
from pypto_actors.program import Program


class Declared(Struct, frozen=True, eq=False):
    """Programs, configuration and callbacks that fit together."""

    programs: tuple[Any, ...]
    config: DistributedConfig
    callbacks: Mapping[str, Callable[..., Any]]


class WorkerOptions(Struct, frozen=True, eq=False):
    """The numbers of a worker."""

    max_queued: int
    in_flight: int
    startup_timeout: float
    max_restarts: int = 3
    persistent: bool = False
    reset_windows: bool = True

    @classmethod
    def checked(
        cls,
        max_queued: Any,
        in_flight: Any,
        startup_timeout: Any,
        policy: Any,
        trace: Any,
        max_restarts: Any,
        persistent: Any,
        reset_windows: Any,
    ) -> WorkerOptions:
        for name, value, least in (("max_queued", max_queued, 1), ("in_flight", in_flight, 1), ("max_restarts", max_restarts, 0)):
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name} must be an int of at least {least}, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not isinstance(persistent, bool):
            raise TypeError(f"persistent must be a bool, got {persistent!r}")
        if reset_windows is not None and not persistent:
            raise ValueError(f"reset_persistent_windows={reset_windows!r} has no meaning without persistent=True")
        if reset_windows is not None and not isinstance(reset_windows, bool):
            raise TypeError(f"reset_persistent_windows must be a bool, got {reset_windows!r}")
        if isinstance(startup_timeout, bool) or not isinstance(startup_timeout, Real):
            raise TypeError(f"startup_timeout must be seconds, got {startup_timeout!r}")
        if not float(startup_timeout) > 0:
            raise ValueError(f"startup_timeout must be above 0 seconds, got {startup_timeout}")
        if policy is not None and not all(callable(getattr(policy, call, None)) for call in ("key", "choose")):
            raise TypeError(f"policy must have the calls key(item) and choose(view), got {policy!r}; PhaseFair() is one")
        if isinstance(policy, type):
            raise TypeError(f"policy must be an object, got the class {policy.__name__}; call it: {policy.__name__}()")
        if trace is not None and not callable(trace):
            raise TypeError(f"trace must be a function that takes events, got {trace!r}; a list's append is one")
        queued, ahead, restarts = map(operator.index, (max_queued, in_flight, max_restarts))
        return cls(queued, ahead, float(startup_timeout), restarts, persistent, reset_windows is not False)


def plain(program: Any) -> Program:
    """The plain program of a plain or compiled one; a `TypeError` says what to pass."""
    if isinstance(program, Program):
        return program
    if isinstance(program, DistributedCompiledProgram):
        return program.program
    hint = "decorate it with @pypto_actors.program" if callable(program) else "pass programs, as @pypto_actors.program makes them"
    raise TypeError(f"{program!r} is no program; {hint}")


def declare(
    programs: Any,
    config: DistributedConfig | None,
    callbacks: Mapping[str, Callable[..., Any]] | None,
    bound: Mapping[str, Callable[..., Any]] | None = None,
) -> Declared:
    """Check that programs, configuration and callbacks fit together. `bound`: what a worker has bound already."""
    several = _programs(programs)
    seen: dict[int, Program] = {}
    configs: list[tuple[str, DistributedConfig]] = [] if config is None else [("config", config)]
    for program in several:
        one = plain(program)
        if id(one) in seen:
            raise ValueError(f"program {one.name!r} is passed more than once; pass each program once")
        seen[id(one)] = one
        if isinstance(program, DistributedCompiledProgram):
            configs.append((f"program {one.name!r}", program.config))
    if config is not None and not isinstance(config, DistributedConfig):
        raise TypeError(f"config must be a DistributedConfig, got {config!r}")
    for where, other in configs[1:]:
        for field in ("platform", "runtime", "device_ids"):
            first, second = getattr(configs[0][1], field), getattr(other, field)
            if first != second:
                raise ProgramMismatchError(
                    f"{configs[0][0]} has {field} {first!r}, but {where} has {second!r}; programs of one worker must agree"
                )
    if callbacks is not None and not isinstance(callbacks, Mapping):
        raise TypeError(f"callbacks must be a mapping of names to functions, got {callbacks!r}; pass {{name: function}}")
    names = dict(bound or {})
    declared = {name for one in seen.values() for name in one.callbacks}
    for name, function in (callbacks or {}).items():
        if name not in declared:
            known = ", ".join(map(repr, sorted(declared))) or "none"
            raise ValueError(f"callback {name!r} is declared by no program; declared are {known}")
        if not callable(function):
            raise TypeError(f"callback {name!r} must be a function, got {function!r}")
        names[name] = function
    missing = sorted(declared - set(names))
    if missing:
        raise ValueError(f"callbacks {missing} are declared but not bound; pass callbacks={{{missing[0]!r}: function, …}} to the worker")
    return Declared(several, configs[0][1] if configs else DistributedConfig(), names)


def _programs(programs: Any) -> tuple[Any, ...]:
    if isinstance(programs, (Program, DistributedCompiledProgram)):
        return (programs,)
    if isinstance(programs, (str, bytes)) or not isinstance(programs, Iterable):
        raise TypeError(f"programs is one program or an iterable of programs, such as [prefill, decode]; got {programs!r}")
    several = tuple(programs)
    if not several:
        raise ValueError("programs is empty; pass at least one, others can be registered later")
    return several
