"""Bound programs: some arguments fixed and checked once, the rest given with each call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from pypto_actors.errors import ArgumentTypeError
from pypto_actors.handle import DistributedRunHandle, RunResult
from pypto_actors.memory import abandon
from pypto_actors.registry import Entry
from pypto_actors.signature import check_one, sign_one
from pypto_actors.submission import PLAIN, Options, Prepared, accesses_of, host_accesses, prepare
from pypto_actors.tensors import Tensors
from pypto_actors.values import Access, DeviceTensor

if TYPE_CHECKING:
    from pypto_actors.system import System


class Owner(Protocol):
    """What a bound program needs of its worker."""

    def _enter(self, what: str) -> System: ...
    def open_system(self) -> System: ...
    def _checked(self, device: int | None, priority: int, deadline: float | None, after: Iterable[DistributedRunHandle]) -> Options: ...
    def _begin(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle | None: ...
    async def _run_waiting(self, system: System, call: Prepared, options: Options) -> RunResult: ...
    async def _submit_prepared(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle: ...
    def _submit_prepared_nowait(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle: ...


class Template(Struct, eq=False):
    """What a call has in common with the one before it, while the tensors live and the rest is of the same shapes and dtypes."""

    epoch: int
    key: tuple[Any, ...]  # the signature of the rest
    call: Prepared
    accesses: tuple[Access, ...]  # of the fixed arguments
    written: tuple[bool | None, ...]  # of each argument of the rest: is it written; `None`: it is a scalar


class BoundProgram:
    """A program with fixed arguments. The rest is given in the order of the parameters; all `Out` parameters that are not fixed may be
    left out (return style). Options are those of `run`."""

    __slots__ = ("_complete", "_entry", "_epoch", "_fixed", "_rest", "_short", "_template", "_tensors", "_worker")

    def __init__(self, worker: Owner, entry: Entry, tensors: Tensors, fixed: Mapping[str, Any]) -> None:
        self._worker = worker
        self._entry = entry
        self._tensors = tensors
        params = entry.program.params
        names = {parameter.name: position for position, parameter in enumerate(params)}
        for name in fixed:
            if name not in names:
                known = ", ".join(names)
                raise ArgumentTypeError(f"program {entry.program.name!r} has no parameter {name!r} to fix; its parameters are {known}")
        self._fixed = {names[name]: value for name, value in fixed.items()}
        for position, value in self._fixed.items():
            check_one(entry.program, position, value)
        self._rest = tuple(position for position in range(len(params)) if position not in self._fixed)
        inputs = set(entry.program.inputs)
        no_output_fixed = all(position in inputs for position in self._fixed)
        self._short = tuple(position for position in self._rest if position in inputs) if no_output_fixed else None
        self._complete: Prepared | None = None
        self._epoch = -1
        self._template: Template | None = None
        self._check_tensors()
        if not self._rest:
            self._complete = self._prepare(())
            self._epoch = tensors.epoch

    def _check_tensors(self) -> None:
        for position, value in self._fixed.items():
            self._tensors.check_any(
                value, f"parameter {self._entry.program.params[position].name!r} of program {self._entry.program.name!r}"
            )

    async def __call__(
        self,
        *rest: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> RunResult:
        """`run` with the fixed arguments and `rest`."""
        worker = self._worker
        system = worker._enter("run")
        if device is None and priority == 0 and deadline is None and after == ():
            options = PLAIN
        else:
            options = worker._checked(device, priority, deadline, after)
        call = self._complete
        if call is None or rest or self._epoch != self._tensors.epoch:
            call = self._call(rest)
        handle = worker._begin(system, call, options)
        if handle is None:
            return await worker._run_waiting(system, call, options)
        try:
            if not handle.state.final:
                await handle.waiters
        except asyncio.CancelledError:
            await abandon(system, handle)
            raise
        return handle.result()

    async def submit(
        self,
        *rest: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> DistributedRunHandle:
        """`submit` with the fixed arguments and `rest`."""
        system = self._worker._enter("submit")
        options = self._worker._checked(device, priority, deadline, after)
        return await self._worker._submit_prepared(system, self._call(rest), options)

    def submit_nowait(
        self,
        *rest: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> DistributedRunHandle:
        """`submit_nowait` with the fixed arguments and `rest`."""
        system = self._worker.open_system()
        options = self._worker._checked(device, priority, deadline, after)
        return self._worker._submit_prepared_nowait(system, self._call(rest), options)

    def _call(self, rest: Sequence[Any]) -> Prepared:
        if self._complete is not None and not rest and self._epoch == self._tensors.epoch:
            return self._complete
        if self._rest:
            known = self._like_before(rest)
            if known is not None:
                return known
        call = self._prepare(rest)
        if not self._rest:
            self._complete = call
            self._epoch = self._tensors.epoch
        else:
            self._remember(rest, call)
        return call

    def _like_before(self, rest: Sequence[Any]) -> Prepared | None:
        """The call, if it differs from the one before in nothing but the host arrays and scalars of the rest."""
        template = self._template
        if template is None or template.epoch != self._tensors.epoch or not self._entry.active:
            return None
        if tuple([sign_one(arg) for arg in rest]) != template.key:
            return None
        before = template.call
        args = list(before.args)
        accesses = list(template.accesses)
        for position, arg, write in zip(self._rest, rest, template.written, strict=True):
            args[position] = arg
            if write is not None:
                if write and not arg.flags.writeable:
                    return None  # the full check says what is wrong
                accesses += host_accesses(arg, write)
        return Prepared(
            before.entry,
            before.signed,
            tuple(args),
            tuple(accesses),
            (),
            False,
            before.program,
            before.shown,
            before.stage,
            before.plans,
            before.rank,
        )

    def _remember(self, rest: Sequence[Any], call: Prepared) -> None:
        signed, params = call.signed, self._entry.program.params
        plain = signed.whole is not None and not (signed.outputs or signed.multiple or self._entry.has_static)
        scalars = all(
            params[position].array is not None or type(arg) is params[position].scalar
            for position, arg in zip(self._rest, rest, strict=False)
        )
        if not plain or not scalars or len(rest) != len(self._rest) or any(isinstance(arg, DeviceTensor) for arg in rest):
            return
        assert signed.whole is not None
        writes = dict(signed.whole)
        fixed = [
            access for position, write in signed.whole if position in self._fixed for access in accesses_of(call.args[position], write)
        ]
        written = tuple(writes.get(position) if params[position].array is not None else None for position in self._rest)
        self._template = Template(self._tensors.epoch, tuple([sign_one(arg) for arg in rest]), call, tuple(fixed), written)

    def _prepare(self, rest: Sequence[Any]) -> Prepared:
        self._entry.check_active()
        args = self._fixed.copy()
        if len(rest) == len(self._rest):
            args.update(zip(self._rest, rest, strict=True))
        elif self._short is not None and len(rest) == len(self._short):
            args.update(zip(self._short, rest, strict=True))
        else:
            params = self._entry.program.params
            names = ", ".join(params[position].name for position in self._rest) or "none"
            raise ArgumentTypeError(
                f"bound program {self._entry.program.name!r} takes {len(self._rest)} arguments ({names}), got {len(rest)}"
            )
        return prepare(self._entry, tuple([args[position] for position in sorted(args)]), self._tensors)

    def __repr__(self) -> str:
        params = self._entry.program.params
        return f"<BoundProgram {self._entry.program.name!r}, fixed: {', '.join(params[p].name for p in self._fixed) or 'nothing'}>"
